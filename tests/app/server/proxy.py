"""A small reverse proxy that serves an app below a path, as nginx would."""

import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.conftest import free_port

# Of a connection and not of what goes through it.
OF_A_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer"}


def proxy(path: str, inside: str, outside: str) -> Starlette:
    """Passes on what is asked for below `path` without that path; nothing else is there."""
    client = httpx.AsyncClient(base_url=inside, timeout=None)

    async def pass_on(request: Request) -> Response:
        headers = [(k, v) for k, v in request.headers.items() if k not in OF_A_HOP | {"host"}]
        headers += [("host", outside), ("x-forwarded-host", outside), ("x-forwarded-proto", "http")]
        asked = client.build_request(
            request.method,
            request.url.path.removeprefix(path),
            params=request.url.query.encode(),
            headers=headers,
            content=await request.body(),
        )
        answer = await client.send(asked, stream=True)

        async def body() -> AsyncIterator[bytes]:
            async for part in answer.aiter_raw():
                yield part
            await answer.aclose()

        response = StreamingResponse(body(), answer.status_code)
        response.raw_headers = [(k, v) for k, v in answer.headers.raw if k.decode().lower() not in OF_A_HOP]
        return response

    methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]
    return Starlette(routes=[Route(path + "/{rest:path}", pass_on, methods=methods)])


@contextmanager
def serve_below(path: str, inside: str) -> Iterator[str]:
    """Serve the app at `inside` below `path` of another port; gives that address."""
    port = free_port()
    outside = f"127.0.0.1:{port}"
    server = uvicorn.Server(
        uvicorn.Config(
            proxy(path, inside, outside), port=port, log_level="error", timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://{outside}{path}/"
    server.should_exit = True
    thread.join()

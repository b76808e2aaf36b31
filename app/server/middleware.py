"""Middleware of all requests: log, agents, origins, open addresses, login, body sizes, check of events."""

import logging
import re
import secrets
import time
from collections.abc import Sequence

from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.jobs.uploads import MAX_BYTES
from app.page.gradio_internals import OPEN, path_of
from app.server.agents import Agents
from app.server.events import EventCheck, refusal
from app.server.head import Head
from app.server.login import LoginGuard, LoginWall
from app.server.origins import Origins
from app.server.temporary import UploadLimit

log = logging.getLogger("app.web")

# The largest body: it is parsed as a whole, in Python, while other requests wait.
MAX_BODY_BYTES = 2**16
# The largest body of the addresses that take a file: a picture of MAX_BYTES in Base64, and its other values.
MAX_FILE_BODY_BYTES = MAX_BYTES * 4 // 3 + 2**20
TAKES_FILE = {"/gradio_api/upload", "/restore", "/start"}
# A proxy's id of a request is kept if it looks like one.
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def middleware(own: Sequence[BaseRoute], head: str = "", framed_by: Sequence[str] = ()) -> list[Middleware]:
    """Return the middleware, outermost first.

    Args:
        own: the app's own routes, which are open beside those of OPEN.
        head: tags for the page's head.
        framed_by: see `Origins`.
    """
    return [
        Middleware(AccessLog),
        Middleware(Agents),
        Middleware(Origins, framed_by=framed_by),
        Middleware(Head, head=head),
        Middleware(OpenAddresses, own=own),
        Middleware(BodyLimit),
        Middleware(LoginGuard),
        Middleware(LoginWall),
        Middleware(UploadLimit),
        Middleware(EventCheck),
    ]


async def refuse_values(request: Request, error: Exception) -> Response:
    """Answer FastAPI's RequestValidationError without sending the values back: they may not be JSON."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return refusal("; ".join(problems)[:1000].encode(errors="replace").decode(), 422)


class AccessLog:
    """Give each request an id, send it as the header X-Request-ID, and log the request when it has ended.

    The log has the route, not the path: a path may be the secret address of a picture.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = scope["request_id"] = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        began, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = (b"x-request-id", request_id.encode())
                message = {**message, "headers": [*message.get("headers", []), own]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "")
            seconds = round(time.perf_counter() - began, 3)
            entry = {"request": request_id, "route": route, "status": status, "seconds": seconds}
            log.info(scope["method"], extra=entry)


class OpenAddresses:
    """Answer 404 at all addresses but the app's own and those of OPEN."""

    def __init__(self, app: ASGIApp, own: Sequence[BaseRoute]) -> None:
        self._app, self._own = app, own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = path_of(scope)
            # For the name of an unknown page Gradio answers 500; the app has one page, without a name.
            names_page = path in ("", "/") and Request(scope).query_params.get("page")
            if names_page or not (OPEN.fullmatch(path) or self._is_own(scope)):
                return await refusal("There is nothing at this address.", 404)(scope, receive, send)
        await self._app(scope, receive, send)

    def _is_own(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is not Match.NONE for route in self._own)


class BodyLimit:
    """Refuse a body that is larger than its address takes, as soon as so much has arrived."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        largest = MAX_FILE_BODY_BYTES if path_of(scope).rstrip("/") in TAKES_FILE else MAX_BODY_BYTES
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > largest:
            return await _too_large(largest)(scope, receive, send)
        arrived, answering, refused = 0, False, False

        async def count() -> Message:
            nonlocal arrived, refused
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > largest and not answering:
                refused = True
                await _too_large(largest)(scope, receive, send)
            return {"type": "http.disconnect"} if refused else message

        async def answer(message: Message) -> None:
            nonlocal answering
            answering = True
            if not refused:
                await send(message)

        try:
            await self._app(scope, count, answer)
        except ClientDisconnect:
            if not refused:
                raise


def _too_large(largest: int) -> Response:
    limit = f"{largest / 2**20:.0f} MB" if largest >= 2**20 else f"{largest // 2**10} kB"
    return refusal(f"The request is too large; the limit is {limit}.", 413)

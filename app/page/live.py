"""Routes of the page: a stream of its views, pictures and files.

The stream has one line of JSON for each change, with the names of `app.page.views`. A page that lost it
connects again and gets everything. Pictures are found only by their names, which can't be guessed.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import IO, Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from app.backends.base import Backend
from app.history.export import export_zip
from app.jobs.job import RequestError
from app.jobs.metadata import Unreadable
from app.jobs.uploads import MAX_BYTES
from app.page.form import from_picture
from app.page.gradio_internals import login_of
from app.page.session import Session, Sessions
from app.page.sketches import Sketches
from app.page.starting import begin_with
from app.page.views import View, page_views

# Changes are sent at most this often, and at least an empty one that often.
REFRESH_S = 0.1
HEARTBEAT_S = 2.0
# A request that only names a tab is no longer than this.
MAX_REQUEST_BYTES = 2000
CHUNK_BYTES = 2**18
# For files that never change, are for one person, and must not be taken for anything else.
_PRIVATE = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "Referrer-Policy": "no-referrer",
}
_ZIP = {"Content-Disposition": 'attachment; filename="diffusion-preview.zip"'}
_UNCACHED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def live_routes(
    backend: Backend,
    sessions: Sessions,
    sketches: Sketches,
    views: Callable[[Backend, Session], View] | None = None,
) -> list[BaseRoute]:
    """Return the routes of the stream of `views` (by default the ordinary page's) and its pictures."""

    async def live(request: Request) -> Response:
        try:
            session, _ = await session_of(request, sessions)
        except RequestError as error:
            return refusal(error)
        stream = _stream(
            sessions,
            session,
            lambda: (views or page_views)(backend, session),
            lambda: login_of(request) == session.login,
        )
        return StreamingResponse(stream, 200, _UNCACHED, "text/event-stream")

    def picture(request: Request) -> Response:
        name, _, ending = request.path_params["file"].partition(".")
        try:
            if ending not in ("png", "jpg"):
                raise RequestError("There is no such picture.")
            path = sessions.history.path(request.path_params["shelf"], name, small=ending == "jpg")
        except RequestError as error:
            return refusal(error, 404)
        kind = "image/png" if ending == "png" else "image/jpeg"
        return FileResponse(path, headers=_PRIVATE, media_type=kind)

    def sketch(request: Request) -> Response:
        data = sketches.find(request.path_params["name"])
        if data is None:
            return refusal(RequestError("This sketch is gone."), 404)
        return Response(data, headers=_PRIVATE, media_type="image/jpeg")

    return [
        Route("/live", live, methods=["POST"]),
        Route("/pictures/{shelf}/{file}", picture),
        Route("/sketches/{name}", sketch),
    ]


def file_routes(sessions: Sessions) -> list[BaseRoute]:
    """Return the routes of files: /export gives a zip of all pictures, /restore reads a PNG's text, and
    /start takes a picture to start from."""

    async def export(request: Request) -> Response:
        try:
            session, _ = await session_of(request, sessions)
            file = await asyncio.to_thread(export_zip, session.shelf)
        except RequestError as error:
            return refusal(error)
        return StreamingResponse(_read_and_close(file), 200, _UNCACHED | _ZIP, "application/zip")

    async def restore(request: Request) -> Response:
        try:
            data = await _read_body(request, MAX_BYTES)
            return JSONResponse(await asyncio.to_thread(from_picture, data))
        except RequestError as error:
            return refusal(error, 422 if isinstance(error, Unreadable) else 400)

    async def start(request: Request) -> Response:
        try:
            body = await _read_body(request, MAX_BYTES + MAX_REQUEST_BYTES)
            named, _, data = body.partition(b"\n")
            session, _ = await _session_named(request, named, sessions)
            await asyncio.to_thread(begin_with, session, data)
        except RequestError as error:
            return refusal(error)
        return Response(status_code=204)

    return [
        Route("/export", export, methods=["POST"]),
        Route("/restore", restore, methods=["POST"]),
        Route("/start", start, methods=["POST"]),
    ]


async def session_of(request: Request, sessions: Sessions) -> tuple[Session, dict[str, Any]]:
    """Return the session that a request's JSON names, and that JSON. Raises RequestError if it names none."""
    return await _session_named(request, await _read_body(request, MAX_REQUEST_BYTES), sessions)


async def _session_named(request: Request, body: bytes, sessions: Sessions) -> tuple[Session, dict[str, Any]]:
    try:
        named = json.loads(body)
        browser, tab = named["browser"], named["tab"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError("This page is out of date. Please load it again.") from error
    return await asyncio.to_thread(sessions.of, browser, tab, login_of(request)), named


async def _stream(
    sessions: Sessions, session: Session, views: Callable[[], View], is_allowed: Callable[[], bool]
) -> AsyncIterator[str]:
    """Yield server-sent events while it is allowed: all views at first, then those that have changed."""
    loop, new = asyncio.get_running_loop(), asyncio.Event()

    def listener() -> None:
        loop.call_soon_threadsafe(new.set)

    sent: dict[str, str] = {}
    sessions.attach(session, listener)
    try:
        while not sessions.closed and is_allowed():
            new.clear()
            values = await asyncio.to_thread(views)
            texts = {name: json.dumps(view) for name, view in values.items()}
            changes = {name: text for name, text in texts.items() if sent.get(name) != text}
            sent |= changes
            body = ",".join(f'"{name}":{text}' for name, text in changes.items())
            yield f"data: {{{body}}}\n\n"
            await asyncio.sleep(REFRESH_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(new.wait(), HEARTBEAT_S)
    finally:
        sessions.detach(session, listener)


def _read_and_close(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


async def _read_body(request: Request, limit: int) -> bytes:
    """Read a request's body. Raises RequestError as soon as it is longer than `limit` bytes."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise RequestError(f"This file is too large; the limit is {limit / 2**20:.0f} MB.")
    return data


def refusal(error: RequestError, status: int = 400) -> Response:
    """Return a response that says why something was not done."""
    return JSONResponse({"error": str(error)}, status, {"Cache-Control": "no-store"})

"""What the page asks for besides Gradio's own: what to show, as it changes; pictures; files.

The stream is one line of JSON per change, under the names of `app.page.views`; a page that lost it asks again and
gets everything anew. Pictures are found by names that nobody can guess, and by nothing else.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from app.backends.base import Backend
from app.history.export import export_zip
from app.jobs.job import RequestError
from app.jobs.uploads import MAX_BYTES
from app.page.form import from_picture
from app.page.gradio_internals import login_of
from app.page.session import Session, Sessions
from app.page.sketches import Sketches
from app.page.starting import begin_with
from app.page.views import grid_view, history_view, stage_view, start_view, status_view

# The page is told what is new at most this often.
REFRESH_S = 0.1
# When nothing is new, the stream shows at least that it is alive.
HEARTBEAT_S = 2.0
# A request that names a tab is short.
MAX_REQUEST_BYTES = 2000
# For a file whose content never changes, shown to one person alone, and not to be taken for anything else.
_PRIVATE = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STREAM = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


Views = Callable[[Backend, Session], dict[str, Any]]


def live_routes(
    backend: Backend, sessions: Sessions, sketches: Sketches, views: Views | None = None
) -> list[BaseRoute]:
    """What a page shows: the stream of `views` (those of the ordinary page), and the pictures in it."""

    async def live(request: Request) -> Response:
        try:
            session, _ = await session_of(request, sessions)
        except RequestError as error:
            return refusal(error)
        stream = _stream(
            sessions,
            session,
            lambda: (views or all_views)(backend, session),
            lambda: login_of(request) == session.login,
        )
        return StreamingResponse(stream, 200, _STREAM, "text/event-stream")

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
    """What a browser has made, as one file; and the form's values, from a picture."""

    async def export(request: Request) -> Response:
        try:
            session, _ = await session_of(request, sessions)
            path = await asyncio.to_thread(export_zip, session.shelf)
        except RequestError as error:
            return refusal(error)
        done = BackgroundTask(path.unlink)
        return FileResponse(path, filename="diffusion-preview.zip", headers=_STREAM, background=done)

    async def restore(request: Request) -> Response:
        try:
            data = await read_body(request, MAX_BYTES)
            wanted = await asyncio.to_thread(from_picture, data)
        except RequestError as error:
            return refusal(error)
        return JSONResponse(wanted)

    async def start(request: Request) -> Response:
        try:
            body = await read_body(request, MAX_BYTES + MAX_REQUEST_BYTES)
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
    """The session that a request's body names, and the whole body. Raises RequestError without."""
    return await _session_named(request, await read_body(request, MAX_REQUEST_BYTES), sessions)


async def _session_named(request: Request, body: bytes, sessions: Sessions) -> tuple[Session, dict[str, Any]]:
    try:
        named = json.loads(body)
        browser, tab = named["browser"], named["tab"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError("This page is out of date. Please load it again.") from error
    return await asyncio.to_thread(sessions.of, browser, tab, login_of(request)), named


async def _stream(
    sessions: Sessions,
    session: Session,
    views_of: Callable[[], dict[str, Any]],
    allowed: Callable[[], bool],
) -> AsyncIterator[str]:
    """Server-sent events: whatever has changed since the last one, everything in the first; as long as
    whoever listens is `allowed` to."""
    loop, new = asyncio.get_running_loop(), asyncio.Event()

    def listener() -> None:
        loop.call_soon_threadsafe(new.set)

    shown: dict[str, str] = {}
    sessions.attach(session, listener)
    try:
        while not sessions.closed and allowed():
            new.clear()
            values = await asyncio.to_thread(views_of)
            views = {name: json.dumps(view) for name, view in values.items()}
            changes = {name: text for name, text in views.items() if shown.get(name) != text}
            shown |= changes
            body = ",".join(f'"{name}":{text}' for name, text in changes.items())
            yield f"data: {{{body}}}\n\n"
            await asyncio.sleep(REFRESH_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(new.wait(), HEARTBEAT_S)
    finally:
        sessions.detach(session, listener)


def all_views(backend: Backend, session: Session) -> dict[str, Any]:
    """What the ordinary page is told."""
    with session.lock:
        views: dict[str, Any] = {
            "status": status_view(backend) | {"login": session.login},
            "start": start_view(session),
            "grid": grid_view(session),
            "stage": stage_view(session),
            "notices": session.notices,
        }
    return views | {"history": history_view(session.shelf)}


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request. Raises RequestError, before all of it is read, where it is too large."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise RequestError(f"This file is too large: {most / 2**20:.0f} MB is the most.")
    return data


def refusal(error: RequestError, status: int = 400) -> Response:
    """Why something is not done, in words."""
    return JSONResponse({"error": str(error)}, status, {"Cache-Control": "no-store"})

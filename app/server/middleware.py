"""What every request passes: ids and the log, the login, the limit of body sizes, the check of events."""

import logging
import re
import secrets
import time
from collections.abc import Mapping
from html import escape

from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.jobs.uploads import MAX_BYTES
from app.page.gradio_internals import INTERNAL_ROUTES, page_of
from app.page.scripts import STATIC
from app.server.events import EventCheck, is_allowed, refusal

log = logging.getLogger("app.web")

# A picture of MAX_BYTES in Base64, and what goes with it.
MAX_BODY_BYTES = MAX_BYTES * 4 // 3 + 2**20
# A proxy's id of a request is kept if it looks like one.
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
LOGIN_LABELS: Mapping[str, str] = {
    "language": "en",
    "title": "Diffusion Preview",
    "welcome": "Log in to make pictures here.",
    "name": "Name",
    "password": "Password",
    "log_in": "Log in",
    "wrong": "The name or the password is wrong.",
    "silent": "The server did not answer. Please try again.",
}
# First parts of the paths that need no login: the login itself, and what Gradio checks by itself.
WITHOUT_LOGIN = {"", "healthz", "readyz", "metrics", "card.png", *INTERNAL_ROUTES}
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin"))


def middleware() -> list[Middleware]:
    """Return what each request passes, outermost first."""
    return [Middleware(AccessLog), Middleware(LoginWall), Middleware(BodyLimit), Middleware(EventCheck)]


async def refuse_values(request: Request, error: Exception) -> Response:
    """Answer FastAPI's RequestValidationError without sending the values back: they may not be JSON."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return refusal("; ".join(problems)[:1000].encode(errors="replace").decode(), 422)


class AccessLog:
    """Give each request an id, send it as the header X-Request-ID, and log the request when it has ended.

    The log has the route, not the path: a path may be the secret address of somebody's picture.
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
                own = [(b"x-request-id", request_id.encode()), *HEADERS]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "")
            seconds = round(time.perf_counter() - began, 3)
            entry = {"request": request_id, "route": route, "status": status, "seconds": seconds}
            log.info(scope["method"], extra=entry)


class LoginWall:
    """Where the app asks for a login, serve others the login page, and nothing that is not needed for it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_allowed(scope):
            first = scope["path"].removeprefix(scope.get("root_path", "")).strip("/").split("/")[0]
            if not first and scope["method"] in ("GET", "HEAD"):
                return await _login_page(page_of(scope).login_labels)(scope, receive, send)
            if first not in WITHOUT_LOGIN:
                return await refusal("Please log in.", 401)(scope, receive, send)
        await self._app(scope, receive, send)


def _login_page(labels: Mapping[str, str]) -> Response:
    """Return the login page; `labels` replace those of LOGIN_LABELS."""
    html, texts = (STATIC / "login.html").read_text(encoding="utf-8"), {**LOGIN_LABELS, **labels}
    html = re.sub(r"\{\{(\w+)\}\}", lambda place: escape(texts[place[1]]), html)
    return HTMLResponse(html, headers={"Cache-Control": "no-store"})


class BodyLimit:
    """Refuse a body of more than MAX_BODY_BYTES as soon as so much has arrived."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > MAX_BODY_BYTES:
            return await _too_large()(scope, receive, send)
        arrived, answering, refused = 0, False, False

        async def count() -> Message:
            nonlocal arrived, refused
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > MAX_BODY_BYTES and not answering:
                refused = True
                await _too_large()(scope, receive, send)
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


def _too_large() -> Response:
    return refusal(f"The request is too large; the limit is {MAX_BODY_BYTES / 2**20:.0f} MB.", 413)

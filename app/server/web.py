"""What is served beside the page, and what each request passes: ids, the log, limits, and checks of form."""

import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from gradio.routes import INTERNAL_ROUTES
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.jobs.uploads import MAX_BYTES
from app.server.auth import login_of
from app.server.front import Front

log = logging.getLogger("app.web")

# A picture of MAX_BYTES in Base64, and what goes with it.
LARGEST_BODY = MAX_BYTES * 4 // 3 + 2**20
# An id that a proxy has given to a request is kept where it looks like one.
ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
# Where Gradio takes events, with or without its queue.
EVENTS = re.compile(r"/gradio_api/(queue/join|(call(/v2)?|run|api)/[^/]+)/?")
BY_NAME = "/gradio_api/call/v2/"
ANSWERS = re.compile(r"/gradio_api/(queue/data|call/(v2/)?[^/]+/[^/]+)/?")
# Of Gradio's, and of no use here: it fetches from elsewhere, and calls what no component of ours has.
CLOSED = re.compile(r"/(gradio_api/)?(proxy=.*|component_server/?)", re.DOTALL)
AT_ONCE = re.compile(r"/gradio_api/(run|api)/")
TAB = re.compile(r"[\w-]{1,64}", re.ASCII)
# What is served to those who have not logged in: the login itself, and what Gradio checks by itself.
LOGIN = Path(__file__).parents[1] / "page" / "static" / "login.html"
LOGIN_WORDS: Mapping[str, str] = {
    "language": "en",
    "title": "Diffusion Preview",
    "welcome": "Log in to make pictures here.",
    "name": "Name",
    "password": "Password",
    "log_in": "Log in",
    "wrong": "Name and password do not fit.",
    "silent": "The server did not answer. Please try again.",
}
OPEN = {"", "healthz", "readyz", "metrics", "card.png", *INTERNAL_ROUTES}
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin"))


def routes(front: Front, metrics_token: str | None) -> list[Route]:
    """/healthz: this process is alive and can make pictures. /readyz: it accepts work. /metrics: where there
    is a token."""

    def healthz(request: Request) -> Response:
        return _answer(front.healthy, "healthy" if front.healthy else "broken")

    def readyz(request: Request) -> Response:
        return _answer(front.state == "ready", front.state)

    def metrics(request: Request) -> Response:
        sent = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(sent, f"Bearer {metrics_token}".encode()):
            return Response(
                "This needs the bearer token of --metrics-token.\n", 401, {"WWW-Authenticate": "Bearer"}
            )
        return Response(front.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    served = [Route("/healthz", healthz), Route("/readyz", readyz)]
    return [*served, Route("/metrics", metrics)] if metrics_token else served


def _answer(well: bool, state: str) -> Response:
    return JSONResponse({"state": state}, 200 if well else 503, {"Cache-Control": "no-store"})


def middleware() -> list[Middleware]:
    """What each request passes, outermost first."""
    return [Middleware(Requests), Middleware(Logins), Middleware(Bodies), Middleware(Events)]


async def refuse_values(request: Request, error: Exception) -> Response:
    """What FastAPI says of values that it can't take, without sending them back: they may be no JSON."""
    assert isinstance(error, RequestValidationError)
    wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return _words("; ".join(wrong)[:1000].encode(errors="replace").decode(), 422)


def _words(words: str, status: int) -> Response:
    return JSONResponse({"detail": words}, status)


def forget_lost_tabs(page: gr.Blocks) -> None:
    """Have Gradio's queue drop messages for a tab that is gone; it would refuse everybody over them."""
    queue = page._queue
    send = queue.send_message

    def send_if_there(event: Any, message: Any) -> None:
        if event.session_hash in queue.pending_messages_per_session:
            send(event, message)

    queue.send_message = send_if_there  # type: ignore[assignment, method-assign]


class Requests:
    """Gives each request an id, says it in the header X-Request-ID, and logs the request when it has ended.

    The log has the route and not the path: a path may be the secret address of somebody's picture.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request = scope["request_id"] = given if ID.fullmatch(given) else secrets.token_hex(8)
        began, status = time.perf_counter(), 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", request.encode()), *HEADERS]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            route = getattr(scope.get("route"), "path", "")
            seconds = round(time.perf_counter() - began, 3)
            told = {"request": request, "route": route, "status": status, "seconds": seconds}
            log.info(scope["method"], extra=told)


class Logins:
    """Where there is a login, gives everybody else the page to log in on, and of the rest what that needs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _logged_in(scope):
            first = scope["path"].removeprefix(scope.get("root_path", "")).strip("/").split("/")[0]
            if not first and scope["method"] in ("GET", "HEAD"):
                return await _login(scope["app"].get_blocks().login)(scope, receive, send)
            if first not in OPEN:
                return await _words("Please log in.", 401)(scope, receive, send)
        await self._app(scope, receive, send)


def _login(words: Mapping[str, str]) -> Response:
    """The page to log in on, in these words (see LOGIN_WORDS)."""
    page = LOGIN.read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda place: escape(words[place[1]]), page)
    return HTMLResponse(page, headers={"Cache-Control": "no-store"})


def _logged_in(scope: Scope) -> bool:
    """Whether whoever sent a request may use the app; where there is no login, everybody may."""
    return getattr(scope.get("app"), "auth", None) is None or bool(login_of(Request(scope)))


class Events:
    """Refuses events that Gradio would stumble over: of no function, of no tab, or without their values; and
    requests for answers that will never come."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        method = scope.get("method")
        if method and CLOSED.fullmatch(path):
            return await _words("There is nothing at this address.", 404)(scope, receive, send)
        if method == "GET" and ANSWERS.fullmatch(path) and _is_lost(Request(scope), scope["app"], path):
            return await _words("There is nothing to be heard of this event.", 404)(scope, receive, send)
        # Strangers are told by Gradio to log in, and nothing of what was wrong.
        if method != "POST" or not EVENTS.fullmatch(path) or not _logged_in(scope):
            return await self._app(scope, receive, send)
        body = await Request(scope, receive).body()
        wrong = _wrong_event(body, scope["app"].get_blocks(), path)
        if wrong:
            return await _words(wrong, 422)(scope, receive, send)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return messages.pop() if messages else await receive()

        async def answer(message: Message) -> None:
            # Gradio answers so whatever an event raises, be it but words for a visitor.
            if AT_ONCE.match(path) and message.get("status") == 500:
                message = {**message, "status": 422}
            await send(message)

        await self._app(scope, again, answer)


def _wrong_event(body: bytes, page: gr.Blocks, path: str) -> str:
    """What is wrong with the form of an event; nothing where it is right."""
    try:
        event = json.loads(body, parse_constant=_no_number)
        json.dumps(event, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return "This is no JSON, or goes too deep, or has numbers or letters that are none."
    if not isinstance(event, Mapping):
        return "An event must be an object."
    tab, function, values = event.get("session_hash"), event.get("fn_index"), event.get("data", [])
    if tab is not None and not (isinstance(tab, str) and TAB.fullmatch(tab)):
        return "session_hash must be 1 to 64 letters, digits, - and _."
    if function is not None and (type(function) is not int or function not in page.fns):
        return "There is no function of this fn_index."
    if path.endswith("/queue/join") and (tab is None or function is None):
        return "fn_index and session_hash are missing."
    name = path.rstrip("/").rpartition("/")[2]
    if BY_NAME in path:
        return _wrong_names(event, page.get_api_info()["named_endpoints"].get(f"/{name}"))
    if not isinstance(values, list):
        return "data must be a list."
    found = page.fns.get(function) if function is not None else _named(page, name)
    if found is None or found.fn is None:
        return "There is no such endpoint."
    due = len(found.inputs)
    if len(values) < due or (AT_ONCE.match(path) and len(values) > due):
        named = f" At {BY_NAME}{name}, arguments have names, and may be left out." if function is None else ""
        return f"data must have {due} values, not {len(values)}.{named}"
    return ""


def _wrong_names(given: Mapping[str, Any], endpoint: Mapping[str, Any] | None) -> str:
    """What is wrong with arguments that are sent by name; nothing where they are right."""
    if endpoint is None:
        return "There is no such endpoint."
    due = {about["parameter_name"]: about["parameter_has_default"] for about in endpoint["parameters"]}
    unknown = next((name for name in given if name not in due), None)
    if unknown is not None:
        return f"There is no argument {unknown[:40]!r} here, but {', '.join(due)}."
    missing = next((name for name, optional in due.items() if not optional and name not in given), None)
    return f"The argument {missing} is missing." if missing else ""


def _is_lost(request: Request, app: Any, path: str) -> bool:
    """Whether Gradio has nothing for whoever asks: it would break the connection in the middle."""
    queue = app.get_blocks()._queue
    if path.startswith("/gradio_api/queue/data"):
        tab = request.query_params.get("session_hash")
        return tab is not None and tab not in queue.pending_messages_per_session
    event = path.rstrip("/").rpartition("/")[2]
    waiting = any(event in events for events in queue.pending_event_ids_session.values())
    return not (waiting or event in queue.event_ids_to_events or event in queue.pending_messages_per_session)


def _named(page: gr.Blocks, name: str) -> Any:
    return next((each for each in page.fns.values() if each.api_name == name), None)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class Bodies:
    """Refuses bodies of more than LARGEST_BODY bytes as soon as so much has come."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > LARGEST_BODY:
            return await _too_large()(scope, receive, send)
        came, begun, refused = 0, False, False

        async def count() -> Message:
            nonlocal came, refused
            message = await receive()
            came += len(message.get("body", b""))
            if came > LARGEST_BODY and not begun:
                refused = True
                await _too_large()(scope, receive, send)
            return {"type": "http.disconnect"} if refused else message

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            if not refused:
                await send(message)

        try:
            await self._app(scope, count, answer)
        except ClientDisconnect:
            if not refused:
                raise


def _too_large() -> Response:
    return _words(f"This is too large: {LARGEST_BODY / 2**20:.0f} MB is the most.", 413)

"""The login: the page that asks for it, the wall around everything else, and the guard against guessing."""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.page.gradio_internals import asks_for_login, page_of, path_of
from app.page.scripts import STATIC
from app.server.events import is_allowed, refusal, replay
from app.server.limits import LimitReached, Limits, address_of

LOGIN_LABELS: Mapping[str, str] = {
    "language": "en",
    "title": "Diffusion Preview",
    "welcome": "Log in to make pictures here.",
    "name": "Name",
    "password": "Password",
    "log_in": "Log in",
    "wrong": "The name or the password is wrong.",
    "often": "Too many wrong passwords came from here. Please wait a minute.",
    "silent": "The server did not answer. Please try again.",
}
# First parts of the paths that need no login.
WITHOUT_LOGIN = {
    "",
    "login",
    "logout",
    "healthz",
    "readyz",
    "metrics",
    "card.png",
    "scripts",
    "favicon.ico",
    "robots.txt",
    "theme.css",
    "manifest.json",
    "pwa_icon",
}
# Gradio asks for this address when it launches.
GRADIOS_START = "gradio_api/startup-events"
# Wrong passwords in a minute: of an address for one name, and of an address for all names.
WRONG_FOR_NAME, WRONG_FROM_ADDRESS = 10, 60
# Passwords that are checked at the same time, which takes a tenth of a second each, and that may wait.
MAX_CHECKS, MAX_WAITING = 2, 20


class LoginWall:
    """Serve requests without a login only the login page, if the app requires a login."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_allowed(scope):
            path = path_of(scope).strip("/")
            first = path.partition("/")[0]
            if not first and scope["method"] in ("GET", "HEAD"):
                return await _login_page(page_of(scope).login_labels)(scope, receive, send)
            if first not in WITHOUT_LOGIN and path != GRADIOS_START:
                return await refusal("Please log in.", 401)(scope, receive, send)
        await self._app(scope, receive, send)


def _login_page(labels: Mapping[str, str]) -> Response:
    """Return the login page; `labels` replace those of LOGIN_LABELS."""
    html, texts = (STATIC / "login.html").read_text(encoding="utf-8"), {**LOGIN_LABELS, **labels}
    html = re.sub(r"\{\{(\w+)\}\}", lambda place: escape(texts[place[1]]), html)
    return HTMLResponse(html, headers={"Cache-Control": "no-store"})


class LoginGuard:
    """Limit the simultaneous checks of passwords, and the wrong passwords from an address.

    A client that hangs up loses its place in the line. Wrong passwords count for the sender's address only,
    so no one can lock out another person.

    Args:
        now: the clock, in seconds.
    """

    def __init__(self, app: ASGIApp, now: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._wrong_for_name = Limits(WRONG_FOR_NAME, now)
        self._wrong_from_address = Limits(WRONG_FROM_ADDRESS, now)
        self._checks = asyncio.Semaphore(MAX_CHECKS)
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and path_of(scope).strip("/") == "login"
            and asks_for_login(scope)
        ):
            return await self._app(scope, receive, send)
        request = Request(scope, receive)
        body, address = await request.body(), address_of(request)
        pair = f"{address} {await _name_in(scope, body)}"
        try:
            self._wrong_for_name.take(pair, 0)
            self._wrong_from_address.take(address, 0)
        except LimitReached as limit:
            return await refusal(f"Please wait {limit.wait_s:.0f} s.", 429)(scope, receive, send)
        if self._waiting >= MAX_WAITING:
            return await refusal("Too many people are logging in. Please try again.", 503)(
                scope, receive, send
            )
        gone = asyncio.ensure_future(_hung_up(receive))
        self._waiting += 1
        try:
            if not await _acquired(self._checks, gone):
                return
        finally:
            self._waiting -= 1

        async def answer(message: Message) -> None:
            if message.get("status") == 400:
                self._wrong_for_name.charge(pair, 1)
                self._wrong_from_address.charge(address, 1)
            await send(message)

        try:
            await self._app(scope, replay(body, lambda: gone), answer)
        finally:
            self._checks.release()
            gone.cancel()


async def _name_in(scope: Scope, body: bytes) -> str:
    """Return the name in a login form, or ""."""
    try:
        form = await Request(scope, replay(body)).form()
    except HTTPException:
        return ""
    return str(form.get("username", "")).strip()[:64]


async def _hung_up(receive: Receive) -> Message:
    """Wait until the client has closed the connection; return that message."""
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


async def _acquired(checks: asyncio.Semaphore, gone: asyncio.Future[Message]) -> bool:
    """Acquire a place, unless the client hangs up first."""
    place = asyncio.ensure_future(checks.acquire())
    waits: set[asyncio.Future[Any]] = {place, gone}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if gone.done():
        if place.done() and not place.cancelled():
            checks.release()
        place.cancel()
        return False
    return True

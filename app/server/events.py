"""Check events before Gradio gets them: it answers some malformed ones with a traceback, or never."""

import json
import re
from collections.abc import Mapping
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.page.gradio_internals import (
    ANSWER,
    EVENT,
    EVENT_BY_NAME,
    UNQUEUED_EVENT,
    asks_for_login,
    find_event,
    is_answer_lost,
    login_of,
    page_of,
    path_of,
    unfinished_events,
)
from app.server.limits import address_of

TAB = re.compile(r"[\w-]{1,64}", re.ASCII)
# Events in the queue of one person, by login or address. Those of the page are there for a moment only.
MAX_EVENTS = 100


class EventCheck:
    """Refuse malformed events, events of unknown functions, and requests for answers that will never come."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = path_of(scope), scope.get("method")
        if method == "GET" and ANSWER.fullmatch(path):
            tab = Request(scope).query_params.get("session_hash")
            if is_answer_lost(page_of(scope), path, tab):
                return await refusal("There is no such event, or its answer is gone.", 404)(
                    scope, receive, send
                )
        # Gradio asks strangers to log in; they learn nothing about what was wrong.
        if method != "POST" or not EVENT.fullmatch(path) or not is_allowed(scope):
            return await self._app(scope, receive, send)
        if _events_of_sender(scope) >= MAX_EVENTS:
            message = (
                f"{MAX_EVENTS} of your requests are not finished. Wait for some of them, or cancel them."
            )
            return await refusal(message, 429)(scope, receive, send)
        body = await Request(scope, receive).body()
        problem = problem_of(body, page_of(scope), path)
        if problem:
            return await refusal(problem, 422)(scope, receive, send)

        async def answer(message: Message) -> None:
            # Here Gradio answers any error of an event with 500, also a message for the user.
            if UNQUEUED_EVENT.match(path) and message.get("status") == 500:
                message = {**message, "status": 422}
            await send(message)

        await self._app(scope, replay(body, receive), answer)


def _events_of_sender(scope: Scope) -> int:
    request = Request(scope)
    login, address = login_of(request), address_of(request)
    return sum(
        name == login if login else address_of(sent) == address
        for name, sent in unfinished_events(page_of(scope))
    )


def replay(body: bytes, then: Receive | None = None) -> Receive:
    """Return a `receive` that gives a body which was read already, and then what `then` gives."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        return await then() if then else {"type": "http.disconnect"}

    return receive


def is_allowed(scope: Scope) -> bool:
    """Whether the sender of a request has logged in, or the app asks for no login."""
    return not asks_for_login(scope) or bool(login_of(Request(scope)))


def refusal(message: str, status: int) -> Response:
    """Return a response of the form that FastAPI gives to errors."""
    return JSONResponse({"detail": message}, status)


def problem_of(body: bytes, page: gr.Blocks, path: str) -> str:
    """Return what is wrong with an event's body, or "" if it is valid."""
    try:
        event = json.loads(body, parse_constant=_refuse_constant)
        json.dumps(event, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return "The body is not JSON, is nested too deeply, or contains NaN or invalid Unicode."
    if not isinstance(event, Mapping):
        return "An event must be an object."
    tab, number, values = event.get("session_hash"), event.get("fn_index"), event.get("data", [])
    if tab is not None and not (isinstance(tab, str) and TAB.fullmatch(tab)):
        return "session_hash must be 1 to 64 letters, digits, - and _."
    if number is not None and (type(number) is not int or not find_event(page, number, "")):
        return "There is no function with this fn_index."
    if path.endswith("/queue/join") and (tab is None or number is None):
        return "fn_index and session_hash are missing."
    name = path.rstrip("/").rpartition("/")[2]
    if EVENT_BY_NAME in path:
        return _problem_of_names(event, page.get_api_info()["named_endpoints"].get(f"/{name}"))
    if not isinstance(values, list):
        return "data must be a list."
    found = find_event(page, number, name)
    if found is None or found.fn is None:
        return "There is no such endpoint."
    due = len(found.inputs)
    if len(values) < due or (UNQUEUED_EVENT.match(path) and len(values) > due):
        hint = (
            f" At {EVENT_BY_NAME}{name}, arguments have names and may be left out." if number is None else ""
        )
        return f"data must have {due} values, not {len(values)}.{hint}"
    return ""


def _problem_of_names(given: Mapping[str, Any], endpoint: Mapping[str, Any] | None) -> str:
    """Return what is wrong with arguments that are sent by name, or "" if they are valid."""
    if endpoint is None:
        return "There is no such endpoint."
    due = {about["parameter_name"]: about["parameter_has_default"] for about in endpoint["parameters"]}
    unknown = next((name for name in given if name not in due), None)
    if unknown is not None:
        return f"There is no argument {unknown[:40]!r}. There are: {', '.join(due)}."
    missing = next((name for name, optional in due.items() if not optional and name not in given), None)
    return f"The argument {missing} is missing." if missing else ""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")

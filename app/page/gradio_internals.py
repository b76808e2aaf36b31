"""All uses of Gradio's private parts, each with its reason; no other module uses them.

tests/app/page/test_gradio_internals.py checks each against the installed Gradio.
"""

import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gradio as gr
import gradio.routes
from anyio import from_thread
from gradio.context import LocalContext
from gradio.route_utils import get_root_url
from gradio.utils import get_upload_folder
from gradio_client.utils import encode_file_path, is_file_obj_with_meta, traverse
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = [
    "Blocks",
    "encode_file_path",
    "get_upload_folder",
    "is_file_obj_with_meta",
    "traverse",
]

NOT_UPLOADED = (
    "The picture to start from was not uploaded. Upload it first: post the file to /gradio_api/upload, and "
    "pass on the path that this returns. Pictures at other addresses are not fetched."
)
# The addresses of Gradio's events, which the app checks before Gradio sees them.
EVENT = re.compile(r"/gradio_api/(queue/join|(call(/v2)?|run|api)/[^/]+)/?")
UNQUEUED_EVENT = re.compile(r"/gradio_api/(run|api)/")
EVENT_BY_NAME = "/gradio_api/call/v2/"
ANSWER = re.compile(r"/gradio_api/(queue/data|call/(v2/)?[^/]+/[^/]+)/?")
# Gradio's addresses that the page and its clients need. All others are closed: they serve what the app does
# not have (recordings, streams, custom components), fetch from other servers, give the login's token to
# scripts, or make an icon of any size, which takes all memory for a large one.
OPEN = re.compile(
    r"/(|config|openapi\.json|login|logout|theme\.css|robots\.txt|favicon\.ico|manifest\.json|pwa_icon/(192|512)"
    r"|(assets|static|svelte)/.+"
    r"|gradio_api/(info|openapi\.json|app_id|login_check|startup-events|theme\.css|upload|upload_progress|file=.+"
    r"|queue/(join|data|status)|(call(/v2)?|run|api)/[^/]+(/[^/]+)?|cancel|reset|heartbeat/[^/]+|mcp(/.*)?))/?"
)
# Options of `launch`. After the server has answered once, Gradio also opens the page and gives up after three
# seconds, which a busy machine may need. No public option avoids that.
LAUNCH: Mapping[str, Any] = {"_frontend": False}


class NoOtherOrigins:
    """In the place of Gradio's middleware that lets pages of every other origin read answers with cookies."""

    def __init__(self, app: ASGIApp, **options: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


# It cannot be switched off, and is outside of the middleware that `launch` can be given.
gradio.routes.CustomCORSMiddleware = NoOtherOrigins  # type: ignore[assignment, misc]


class Blocks(gr.Blocks):
    """Blocks that refuse a value that no control of the page can send, instead of logging a traceback."""

    async def preprocess_data(self, block_fn: Any, *arguments: Any, **options: Any) -> list[Any]:
        try:
            return await super().preprocess_data(block_fn, *arguments, **options)
        except Exception as error:
            message = "A setting has a value that it can't have. Please load the page again."
            if not block_fn.targets:  # a program's, not the page's; of its values, files are checked
                message = NOT_UPLOADED
            raise gr.Error(message, print_exception=False) from error


def accept_any_value(component: gr.components.Component) -> None:
    """Skip Gradio's check of a component's value.

    A page that stayed open through a restart has the choices and limits that the app set for its model then;
    the new process knows only those of the layout.
    """
    component.preprocess = lambda payload: payload  # type: ignore[method-assign]


def event_data(event: gr.EventData) -> Mapping[str, Any]:
    """Return what a script passed to `trigger`, which EventData has publicly only name by name; untrusted."""
    return event._data if isinstance(event._data, Mapping) else {}


def current_request() -> Any:
    """Return the gr.Request of the event that runs in this context; None outside of events.

    Backends are called deep below the event's function, and learn from it whose limit counts.
    """
    return LocalContext.request.get(None)


def path_of(scope: Scope) -> str:
    """Return the path of a request below the app's root path."""
    return str(scope.get("path", "")).removeprefix(scope.get("root_path", ""))


def client_session() -> str:
    """Return the session that the client of the running event named itself; "" without one.

    For a client that names none Gradio takes the event's id. For all agents it takes one session of its own.
    """
    request = current_request()
    session = getattr(request, "session_hash", None)
    if not session or session == LocalContext.event_id.get(None) or agent_of(request):
        return ""
    return str(session)


def is_queued() -> bool:
    """Whether the running event came through Gradio's queue; its client does not wait on a connection."""
    return LocalContext.event_id.get(None) is not None


def unfinished_events(page: gr.Blocks) -> list[tuple[str, Request]]:
    """Return the login, or "", and the request of each event in the queue that waits or runs."""
    return [(each.username or "", each.request) for each in [*page._queue.event_ids_to_events.values()]]


def agent_of(request: Any) -> Any:
    """Return the `app.server.agents.AgentCall` that a gr.Request was made for; None if a client made it."""
    http_request = getattr(request, "request", None)
    return http_request.scope.get("agent") if http_request else None


def has_client_left(answer_wait_s: float) -> bool:
    """Whether nobody waits for the answer of the event that runs in this thread.

    Gradio goes on with such an event. The client has hung up, or has not opened the stream of answers within
    `answer_wait_s` seconds from asking.
    """
    request = current_request()
    agent = agent_of(request)
    if agent and agent.has_ended:
        return True
    blocks, event = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    if not (blocks and event):
        # The connection of an event outside of the queue is open until it is answered.
        http_request = getattr(request, "request", None)
        return http_request is not None and from_thread.run(http_request.is_disconnected)
    queue = blocks._queue
    queued = queue.event_ids_to_events.get(event)
    if queued is None:
        return False
    if not queued.alive:  # the stream was closed
        return True
    # Whoever has opened the stream has read the message that the event has begun.
    messages = queue.pending_messages_per_session.get(queued.session_hash)
    is_read = messages is not None and not any(each.event_id == event for each in messages._queue.copy())
    return not is_read and time.monotonic() - queued.enqueue_time >= answer_wait_s


def page_of(scope: Scope) -> Any:
    """Return the Blocks that a request is for: middleware is made before them."""
    return scope["app"].get_blocks()


def asks_for_login(scope: Scope) -> bool:
    """Whether the app that a request is for was launched with `auth`."""
    return getattr(scope.get("app"), "auth", None) is not None


def login_of(request: Request) -> str:
    """Return the name that a request's sender has logged in with; "" without a login.

    Gradio gives it only to events, but the app has its own routes too.
    """
    if not asks_for_login(request.scope):
        return ""
    app = request.app
    cookies = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return next(filter(None, (app.tokens.get(request.cookies.get(each)) for each in cookies)), "")


def root_of(scope: Scope) -> str:
    """Return the app's address as a request's sender sees it, also behind a proxy; no slash at the end."""
    return get_root_url(Request(scope), "/", scope["app"].root_path or scope.get("root_path"))


def find_event(page: gr.Blocks, number: int | None, name: str) -> Any:
    """Return the event of a number (Gradio's fn_index) or else of an endpoint's name; None if there is none.

    Its `inputs` are the components that values must be sent for, its `fn` is None where only scripts run.
    """
    if number is not None:
        return page.fns.get(number)
    return next((each for each in page.fns.values() if each.api_name == name), None)


def drop_messages_for_lost_tabs(page: gr.Blocks) -> None:
    """Have the queue drop messages for lost tabs: Gradio raises, and then refuses all requests."""
    queue = page._queue
    send = queue.send_message

    def send_if_open(event: Any, message: Any) -> None:
        if event.session_hash in queue.pending_messages_per_session:
            send(event, message)

    queue.send_message = send_if_open  # type: ignore[assignment, method-assign]


def skip_statistics(page: gr.Blocks) -> None:
    """Have the queue compute no statistics: it does so with pandas after each event, and nobody sees them."""
    page._queue.compute_analytics_summary = lambda records: {}  # type: ignore[method-assign]


def is_answer_lost(page: Any, path: str, tab: str | None) -> bool:
    """Whether the queue has no answer for a request to an address of ANSWER; Gradio breaks the connection."""
    queue = page._queue
    if path.startswith("/gradio_api/queue/data"):
        return tab is not None and tab not in queue.pending_messages_per_session
    event = path.rstrip("/").rpartition("/")[2]
    waiting = any(event in events for events in queue.pending_event_ids_session.values())
    return not (waiting or event in queue.event_ids_to_events or event in queue.pending_messages_per_session)


def set_tool_answers(page: gr.Blocks, answer: Callable[[Any, Any, str], list[Any]]) -> None:
    """Have the agents' tools of a launched page, if any, answer as `answer(types, outputs, root_url)` does.

    types: the module `mcp.types`. Gradio sends a picture itself only where it is the whole output.
    """
    server = page.mcp_server_obj
    if server:
        server.postprocess_output_data = partial(answer, server.types)  # type: ignore[method-assign]

"""Build the app from its settings, serve it, and shut it down."""

import hmac
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.backends.base import Backend
from app.jobs.uploads import MAX_BYTES
from app.page.gradio_internals import (
    LAUNCH,
    drop_messages_for_lost_tabs,
    set_tool_answers,
    skip_statistics,
)
from app.page.layout import Page, build_page
from app.page.scripts import STATIC
from app.page.theme import make_theme
from app.server.api import ANSWER_WAIT_S, MAX_THREADS, add_endpoints, tool_answer
from app.server.auth import Logins, PasswordHash
from app.server.limits import Limits
from app.server.metered import MeteredBackend
from app.server.metrics import Metrics
from app.server.middleware import middleware, refuse_values
from app.server.settings import Settings
from app.worker import Worker

log = logging.getLogger("app.service")

# A Space is shown in a frame there.
HUGGING_FACE = ["https://huggingface.co"]
# Events in Gradio's queue, where each stays for a moment only.
MAX_QUEUED_EVENTS = 1000
# The last messages need a moment to reach the browsers.
DELIVERY_S = 0.5


def meter(settings: Settings, backend: Backend) -> MeteredBackend:
    """Put metrics and limits before a backend; serve the metrics on a port if the settings say so."""
    metrics = Metrics()
    count_ticks(backend, metrics)
    if settings.metrics_port:
        metrics.serve(settings.metrics_port, settings.metrics_host)
    return MeteredBackend(backend, metrics, Limits(settings.rate) if settings.rate else None)


def count_ticks(backend: Backend, metrics: Metrics) -> None:
    """Have a worker in this process count its ticks; other backends work elsewhere."""
    if isinstance(backend, Worker):
        backend.on_tick = metrics.tick


def build_app(backend: Backend, data: Path, answer_wait_s: float = ANSWER_WAIT_S, **options: Any) -> Page:
    """Build the ordinary page and the endpoints for programs, whose pictures lie in `data`/gradio/pictures.

    That has to be below Gradio's GRADIO_TEMP_DIR. Options go on to `app.page.layout.build_page`.
    """
    page = build_page(backend, data, **options)
    with page:
        add_endpoints(backend, data / "gradio" / "pictures", answer_wait_s)
    return page


def launch_page(page: Page, host: str, port: int, framed_by: Sequence[str] = (), **options: Any) -> str:
    """Serve a page in the background and return its URL; options go on to Gradio's `launch`.

    Args:
        framed_by: origins that may show the page in a frame, see `app.server.origins`.

    Raises:
        OSError: the port is taken, or nothing listens after five seconds on a busy machine.
    """
    # On a ZeroGPU Space, Gradio's default is to run one event at a time.
    page.queue(default_concurrency_limit=None, max_size=MAX_QUEUED_EVENTS)
    drop_messages_for_lost_tabs(page)
    skip_statistics(page)
    app = dict(options.pop("app_kwargs", {}))
    app["routes"] = [*page.routes, *app.get("routes", ())]
    app["middleware"] = middleware(app["routes"], page.head_html, framed_by)
    app["exception_handlers"] = {RequestValidationError: refuse_values}
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        theme=make_theme(),
        css_paths=list(page.styles),
        favicon_path=STATIC / "favicon.png",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        share=False,
        ssr_mode=False,
        pwa=False,
        quiet=True,
        prevent_thread_lock=True,
        max_threads=MAX_THREADS,
        app_kwargs=app,
        **LAUNCH,
        **options,
    )
    set_tool_answers(page, tool_answer)
    return url


def launch_options(
    settings: Settings, backend: MeteredBackend, users: Mapping[str, PasswordHash]
) -> dict[str, Any]:
    """Return the options of `launch_page` that follow from the settings."""
    return {
        "root_path": settings.root_path.rstrip("/"),
        "framed_by": settings.framed_by.split() or (HUGGING_FACE if "SPACE_ID" in os.environ else []),
        "auth": Logins(users).check if users else None,
        "mcp_server": settings.mcp,
        "max_file_size": MAX_BYTES,
        "app_kwargs": {"routes": service_routes(backend, settings.metrics_token)},
    }


def service_routes(backend: MeteredBackend, metrics_token: str | None) -> list[Route]:
    """Return the routes of /healthz (it can make pictures), /readyz (it accepts work) and /metrics."""

    def healthz(request: Request) -> Response:
        return _state(backend.healthy, "healthy" if backend.healthy else "broken")

    def readyz(request: Request) -> Response:
        return _state(backend.state == "ready", backend.state)

    def metrics(request: Request) -> Response:
        sent = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(sent, f"Bearer {metrics_token}".encode()):
            message = "Send the token of --metrics-token as a bearer token.\n"
            return Response(message, 401, {"WWW-Authenticate": "Bearer"})
        return Response(backend.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [Route("/healthz", healthz), Route("/readyz", readyz)]
    return [*routes, Route("/metrics", metrics)] if metrics_token else routes


def _state(ok: bool, state: str) -> Response:
    return JSONResponse({"state": state}, 200 if ok else 503, {"Cache-Control": "no-store"})


class Stop:
    """An event that SIGTERM or SIGINT sets; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.event.set()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)

    def wait(self) -> None:
        """Wait for the signal."""
        while not self.event.wait(3600):
            pass


def end(page: Page, backend: MeteredBackend, grace_s: float) -> None:
    """Finish pending requests within `grace_s` seconds or fail them; then close page and backend."""
    began = time.monotonic()
    finished = backend.drain(grace_s)
    time.sleep(DELIVERY_S)
    page.close(verbose=False)
    backend.close()
    seconds = round(time.monotonic() - began, 1)
    log.info("stopped", extra={"finished": finished, "seconds": seconds})

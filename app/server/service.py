"""From settings to a service: what goes around the backend and the page, and how both come to an end."""

import logging
import signal
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError

from app.backends.base import Backend
from app.jobs.uploads import MAX_BYTES
from app.server import web
from app.server.auth import Hashed, Logins
from app.server.front import Front
from app.server.limits import Limits
from app.server.metrics import Metrics
from app.server.settings import Settings
from app.worker import Worker

log = logging.getLogger("app.service")

# What was told last needs a moment to reach the browsers.
DELIVERY_S = 0.5


def front(settings: Settings, backend: Backend) -> Front:
    """The backend with all that its settings put before it, its metrics served where they are to be."""
    metrics = Metrics()
    count_ticks(backend, metrics)
    if settings.metrics_port:
        metrics.serve(settings.metrics_port, settings.metrics_host)
    return Front(backend, metrics, Limits(settings.rate) if settings.rate else None)


def count_ticks(backend: Backend, metrics: Metrics) -> None:
    """Have a worker in this process count what it does; other backends do their work elsewhere."""
    if isinstance(backend, Worker):
        backend.on_tick = metrics.tick


def launch_options(settings: Settings, front: Front, users: Mapping[str, Hashed]) -> dict[str, Any]:
    """What `app.page.layout.launch_page` is to pass on to Gradio."""
    return {
        "root_path": settings.root_path.rstrip("/"),
        "auth": Logins(users).check if users else None,
        "mcp_server": settings.mcp,
        "max_file_size": MAX_BYTES,
        "app_kwargs": {
            "routes": web.routes(front, settings.metrics_token),
            "middleware": web.middleware(),
            "exception_handlers": {RequestValidationError: web.refuse_values},
        },
    }


class Stop:
    """Set by SIGTERM or SIGINT; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)

    def _told(self, number: int, frame: FrameType | None) -> None:
        self.event.set()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)

    def wait(self) -> None:
        """Wait for the signal."""
        while not self.event.wait(3600):
            pass


def end(page: gr.Blocks, front: Front, grace_s: float) -> None:
    """Finish or hand back what was asked for within `grace_s` seconds, and close page and backend."""
    began = time.monotonic()
    finished = front.drain(grace_s)
    time.sleep(DELIVERY_S)
    page.close(verbose=False)
    front.close()
    seconds = round(time.monotonic() - began, 1)
    log.info("stopped", extra={"finished": finished, "seconds": seconds})

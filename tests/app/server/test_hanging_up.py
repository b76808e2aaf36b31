"""A client that hangs up: what it asked for is cancelled, and the worker is free for others."""

import json
import threading
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from app.jobs.handle import ASK_S, Handle
from app.jobs.job import Cancelled, Job
from app.models import ImageModel
from app.page.gradio_internals import LAUNCH, Blocks
from app.server.api import add_endpoints
from app.server.middleware import middleware
from tests.conftest import free_port

# By then everything must be cancelled: it takes ASK_S, and a moment on a busy machine.
SOON_S = ASK_S + 9.0
HUGE = ["a lake", "", 8, 100, 3.0, 1, "consistency", None, 0.6, 0, 0]


class Endless:
    """A backend that never finishes anything; notes what is cancelled."""

    def __init__(self, model: ImageModel) -> None:
        self.facts = model.facts
        self.begun, self.cancelled = threading.Event(), threading.Event()
        self.left = 0

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        self.left = len(jobs)
        handles = [Handle(self, job) for job in jobs]  # type: ignore[arg-type]
        self.begun.set()
        return handles

    def cancel(self, handle: Handle) -> None:
        if not handle.ended:
            handle.tell(Cancelled())
            self.left -= 1
        if not self.left:
            self.cancelled.set()

    def cancel_owner(self, owner: str) -> None:
        pass


@pytest.fixture
def endless(model: ImageModel) -> Endless:
    return Endless(model)


@pytest.fixture
def address(endless: Endless, tmp_path: Path) -> Iterator[str]:
    backend: Any = endless
    with Blocks() as page:
        add_endpoints(backend, tmp_path)
    page.queue(default_concurrency_limit=None)
    _, url, _ = page.launch(
        server_name="127.0.0.1",
        server_port=free_port(),
        prevent_thread_lock=True,
        quiet=True,
        app_kwargs={"middleware": middleware([])},
        **LAUNCH,
    )
    yield f"{url}gradio_api"
    page.close(verbose=False)


def test_a_closed_request_cancels_what_it_asked_for(address: str, endless: Endless) -> None:
    client = HTTPConnection(urlsplit(address).netloc)
    client.request(
        "POST", "/gradio_api/run/preview", json.dumps({"data": HUGE}), {"Content-Type": "application/json"}
    )
    assert endless.begun.wait(30)
    assert not endless.cancelled.wait(3 * ASK_S), "the client is still there"
    client.close()
    assert endless.cancelled.wait(SOON_S)


@pytest.mark.parametrize("by_name", [True, False], ids=["call", "queue"])
def test_a_closed_stream_of_answers_cancels_what_was_asked_for(
    address: str, endless: Endless, by_name: bool
) -> None:
    if by_name:
        event = httpx.post(f"{address}/call/preview", json={"data": HUGE}, timeout=30).json()["event_id"]
        answers = f"{address}/call/preview/{event}"
    else:
        body = {"data": HUGE, "fn_index": 0, "session_hash": "a-client"}
        httpx.post(f"{address}/queue/join", json=body, timeout=30).raise_for_status()
        answers = f"{address}/queue/data?session_hash=a-client"
    assert endless.begun.wait(30)
    assert not endless.cancelled.wait(2 * ASK_S), "nobody has opened the stream yet, but may do so"
    with httpx.stream("GET", answers, timeout=60) as stream:
        stream.raise_for_status()
        assert not endless.cancelled.wait(2 * ASK_S)
    assert endless.cancelled.wait(SOON_S)

"""A client that hangs up: what it asked for is cancelled, and the worker is free. No stranger ends it."""

import json
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from anyio import to_thread
from gradio_client import Client
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.jobs.handle import ASK_S, Handle
from app.jobs.job import Cancelled, Job
from app.models import ImageModel
from app.page.gradio_internals import LAUNCH, Blocks
from app.server.api import add_endpoints
from app.server.middleware import middleware
from tests.conftest import PATIENCE_S, free_port

# By then everything must be cancelled: it takes ASK_S, and a moment on a busy machine.
SOON_S = ASK_S + 9.0
ANSWER_WAIT_S = 3 * ASK_S
HUGE = ["a lake", "", 8, 100, 3.0, 1, "consistency", None, 0.6, 0, 0]


class Endless:
    """A backend that never finishes anything; notes what is cancelled."""

    def __init__(self, model: ImageModel) -> None:
        self.facts = model.facts
        self.begun, self.cancelled = threading.Event(), threading.Event()
        self.asked = threading.Semaphore(0)
        self.left = 0
        self.handles: list[Handle] = []

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        self.left = len(jobs)
        handles = [Handle(self, job) for job in jobs]  # type: ignore[arg-type]
        self.handles += handles
        self.begun.set()
        self.asked.release()
        return handles

    def cancel(self, handle: Handle) -> None:
        if not handle.ended:
            handle.tell(Cancelled())
            self.left -= 1
        if not self.left:
            self.cancelled.set()

    def cancel_owner(self, owner: str) -> None:
        for handle in [handle for handle in self.handles if handle.job.owner == owner]:
            self.cancel(handle)


@pytest.fixture
def endless(model: ImageModel) -> Endless:
    return Endless(model)


@pytest.fixture
def address(
    endless: Endless, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[str]:
    """The app's address; it waits for the stream of an answer as long as the parameter says."""
    monkeypatch.setattr("app.server.api.MAX_CALLS", 3)
    monkeypatch.setattr("app.server.api.MAX_DIRECT", 2)
    backend: Any = endless
    with Blocks() as page:
        add_endpoints(backend, tmp_path, getattr(request, "param", ANSWER_WAIT_S))
    page.queue(default_concurrency_limit=None)
    port = free_port()
    own = [Route("/gradio_api/mcp", partial(call_as_gradio_does, port), methods=["POST"])]
    _, url, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        max_threads=6,
        app_kwargs={"middleware": middleware(own), "routes": own},
        **LAUNCH,
    )
    yield f"{url}gradio_api"
    page.close(verbose=False)


async def call_as_gradio_does(port: int, request: Request) -> Response:
    """Call an endpoint for an agent, with the headers of its request, until it hangs up."""
    headers = {name: value for name, value in request.headers.items() if name != "content-length"}
    await request.body()
    client = await to_thread.run_sync(partial(Client, f"http://127.0.0.1:{port}", verbose=False))
    client.submit(*HUGE, api_name="/preview", headers=headers)
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return JSONResponse({})


def ask(address: str, **more: str) -> str:
    """Ask for previews; return the address of the answer."""
    body = {"data": HUGE, **more}
    event = httpx.post(f"{address}/call/preview", json=body, timeout=30).json()["event_id"]
    return f"{address}/call/preview/{event}"


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
        answers = ask(address)
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


@pytest.mark.parametrize("way", ["call/preview", "call/v2/preview", "queue/join"])
def test_an_answer_that_nobody_wants_to_read_is_cancelled(address: str, endless: Endless, way: str) -> None:
    body = {"data": HUGE, "fn_index": 0, "session_hash": "a-client"}
    if "v2" in way:
        body = {"prompt": "a lake", "count": 8, "steps": 100}
    httpx.post(f"{address}/{way}", json=body, timeout=30).raise_for_status()
    assert endless.begun.wait(30)
    assert endless.cancelled.wait(ANSWER_WAIT_S + SOON_S)


def test_an_agent_that_hangs_up_cancels_what_it_asked_for(address: str, endless: Endless) -> None:
    agent = HTTPConnection(urlsplit(address).netloc, source_address=("127.0.0.5", 0))
    agent.request("POST", "/gradio_api/mcp", "{}", {"X-Forwarded-For": "8.8.8.8", "X-Agent-Call": "0" * 32})
    assert endless.begun.wait(30)
    assert {handle.job.owner for handle in endless.handles} == {"programs of 127.0.0.5"}
    assert not endless.cancelled.wait(ANSWER_WAIT_S + ASK_S), "the agent is still there"
    agent.close()
    assert endless.cancelled.wait(SOON_S)


def test_clients_without_a_session_share_one_for_each_address(address: str, endless: Endless) -> None:
    def owner_of(**more: str) -> str:
        endless.begun.clear()
        ask(address, **more)
        assert endless.begun.wait(30)
        return endless.handles[-1].job.owner

    assert owner_of() == owner_of() == "programs of 127.0.0.1"
    assert owner_of(session_hash="a-client") == "session a-client"
    endless.begun.clear()
    elsewhere = HTTPConnection(urlsplit(address).netloc, source_address=("127.0.0.5", 0))
    elsewhere.request(
        "POST", "/gradio_api/run/preview", json.dumps({"data": HUGE}), {"Content-Type": "application/json"}
    )
    assert endless.begun.wait(30)
    assert endless.handles[-1].job.owner == "programs of 127.0.0.5"
    elsewhere.close()


def test_a_stranger_at_the_same_address_neither_reads_nor_ends_a_request(
    address: str, endless: Endless
) -> None:
    answers = ask(address)
    event = answers.rpartition("/")[2]
    assert endless.begun.wait(30)
    with httpx.stream("GET", answers, timeout=60):
        for session in (None, "a-client", "None"):
            body: dict[str, Any] = {"data": [], "session_hash": session}
            httpx.post(f"{address}/run/cancel", json=body).raise_for_status()
        guessed = event[:-1] + ("0" if event[-1] != "0" else "1")
        assert httpx.get(f"{address}/call/preview/{guessed}").status_code == 404
        assert httpx.get(f"{address}/queue/data", params={"session_hash": guessed}).status_code == 404
        httpx.post(f"{address}/cancel", json={"session_hash": "", "fn_index": 0, "event_id": guessed})
        assert not endless.cancelled.wait(2 * ASK_S)


@pytest.mark.parametrize("address", [PATIENCE_S], indirect=True)
def test_many_calls_leave_room_for_others(address: str, endless: Endless) -> None:
    netloc = urlsplit(address).netloc
    connections = [HTTPConnection(netloc) for _ in range(2)]
    for connection in connections:
        connection.request(
            "POST",
            "/gradio_api/run/preview",
            json.dumps({"data": HUGE}),
            {"Content-Type": "application/json"},
        )
    for number in range(8):
        ask(address, session_hash=f"client-{number}")
    for _ in range(5):
        assert endless.asked.acquire(timeout=30)
    refused = httpx.post(f"{address}/run/preview", json={"data": HUGE}, timeout=30)
    assert refused.status_code == 422 and "/gradio_api/call/" in refused.json()["error"]
    httpx.post(f"{address}/run/cancel", json={"data": []}, timeout=30).raise_for_status()
    quick = httpx.post(f"{address}/call/cancel", json={"data": []}, timeout=30).json()["event_id"]
    assert "event: complete" in httpx.get(f"{address}/call/cancel/{quick}", timeout=30).text
    assert not endless.asked.acquire(blocking=False), "the other calls wait for a place"
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("address", [PATIENCE_S], indirect=True)
def test_nobody_fills_the_queue(address: str, endless: Endless, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.events.MAX_EVENTS", 4)
    for number in range(4):
        ask(address, session_hash=f"client-{number}")
    for way in ("call/preview", "call/v2/cancel", "run/cancel"):
        refused = httpx.post(f"{address}/{way}", json={}, timeout=30)
        assert refused.status_code == 429 and "Wait for some of them" in refused.json()["detail"]
    elsewhere = HTTPConnection(urlsplit(address).netloc, source_address=("127.0.0.5", 0))
    elsewhere.request("POST", "/gradio_api/run/cancel", '{"data": []}', {"Content-Type": "application/json"})
    assert elsewhere.getresponse().status == 200
    elsewhere.close()


def test_a_client_ends_the_requests_of_its_session(address: str, endless: Endless) -> None:
    ask(address, session_hash="a-client")
    assert endless.begun.wait(30)
    body = {"data": [], "session_hash": "a-client"}
    httpx.post(f"{address}/run/cancel", json=body).raise_for_status()
    assert endless.cancelled.is_set()

"""What stands around the backend, without a page: figures, limits, draining, logs, and what requests pass."""

import io
import json
import logging
import time
from collections.abc import Iterator

import gradio as gr
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app.jobs.handle import Handle, merge
from app.jobs.job import Busy, Done, Failed, RequestError, Step
from app.models import ImageModel
from app.page.gradio_internals import UNUSED
from app.server import logs, middleware
from app.server.events import problem_of
from app.server.limits import MAX_PEOPLE, LimitReached, Limits, network_of
from app.server.metered import HANDED_BACK, MeteredBackend
from app.server.metrics import Metrics
from app.server.service import service_routes
from app.worker import Worker
from tests.conftest import make_job

TOKEN = "a token of some length"


@pytest.fixture
def metered(worker: Worker) -> MeteredBackend:
    metrics = Metrics()
    worker.on_tick = metrics.tick
    return MeteredBackend(worker, metrics)


def value(metered: MeteredBackend, name: str, **labels: str) -> float:
    """A figure as Prometheus would read it; 0 where there is none yet."""
    for family in text_string_to_metric_families(metered.metrics.text().decode()):
        for sample in family.samples:
            if sample.name == f"diffusion_preview_{name}" and labels.items() <= sample.labels.items():
                return sample.value
    return 0.0


def finish(handles: list[Handle]) -> list[object]:
    return [event for _, event in merge(handles) if isinstance(event, Done | Failed)]


def test_pictures_are_counted_by_how_they_end(metered: MeteredBackend, model: ImageModel) -> None:
    finish(metered.submit_all([make_job(model, seed=seed) for seed in range(3)]))
    long = metered.submit(make_job(model, kind="refine", steps=100))
    assert value(metered, "pictures_open", kind="refine") + value(
        metered, "pictures_open", kind="refine", state="running"
    )
    long.cancel()
    finish([long])
    assert value(metered, "pictures_total", kind="preview", outcome="done") == 3
    assert value(metered, "pictures_total", kind="refine", outcome="cancelled") == 1
    assert value(metered, "picture_seconds_count", kind="preview") == 3
    assert value(metered, "wait_seconds_count", kind="preview") == 3
    assert value(metered, "tick_seconds_count") >= 4
    assert value(metered, "batch_pictures_sum") >= 12
    for state in ("waiting", "running"):
        assert value(metered, "pictures_open", kind="preview", state=state) == 0
        assert value(metered, "pictures_open", kind="refine", state=state) == 0


def test_guesses_count_as_used_or_wasted(metered: MeteredBackend, model: ImageModel) -> None:
    used, wasted = metered.submit_all(
        [make_job(model, kind="speculative", steps=40, seed=seed) for seed in (1, 2)]
    )
    for handle in (used, wasted):
        next(event for event in handle.events() if isinstance(event, Step) and event.step >= 3)
    used.promote()
    wasted.cancel()
    finish([used, wasted])
    assert value(metered, "guesses_total", fate="used") == 1
    assert value(metered, "guesses_total", fate="wasted") == 1
    assert 3 <= value(metered, "guess_steps_total", fate="used") < 40
    assert 3 <= value(metered, "guess_steps_total", fate="wasted") < 40
    assert value(metered, "pictures_total", kind="refine", outcome="done") == 1


def test_refusals_are_counted_by_their_reason(metered: MeteredBackend, model: ImageModel) -> None:
    with pytest.raises(RequestError):
        metered.submit(make_job(model, prompt="lake " * 40))
    metered.drain(0)
    with pytest.raises(Busy, match="being restarted"):
        metered.submit(make_job(model))
    assert value(metered, "refusals_total", reason="invalid") == 1
    assert value(metered, "refusals_total", reason="stopping") == 1


def test_draining_finishes_what_somebody_waits_for(metered: MeteredBackend, model: ImageModel) -> None:
    handle = metered.submit(make_job(model, kind="refine", steps=30))
    guess = metered.submit(make_job(model, kind="speculative", steps=100))
    assert metered.state == "ready"
    assert metered.drain(60)
    assert isinstance(list(handle.events())[-1], Done)
    assert not isinstance(list(guess.events())[-1], Done)
    assert metered.state == "stopping"


def test_draining_hands_back_in_words_what_takes_too_long(metered: MeteredBackend, model: ImageModel) -> None:
    handles = metered.submit_all([make_job(model, kind="refine", steps=100, seed=seed) for seed in range(8)])
    began = time.monotonic()
    assert not metered.drain(0.05)
    assert time.monotonic() - began < 5
    assert finish(handles) == [Failed(HANDED_BACK)] * 8


def test_each_has_a_share_that_refills(model: ImageModel, worker: Worker) -> None:
    clock = 0.0
    limits = Limits(600, lambda: clock)
    limits.take("ada", 900)  # never too large, only too soon
    with pytest.raises(LimitReached, match="again in 31 s") as caught:
        limits.take("ada", 1)
    assert caught.value.wait_s == pytest.approx(30, abs=0.2)
    limits.charge("cyd", 2900)
    with pytest.raises(LimitReached, match="again in 4 minutes"):
        limits.take("cyd", 1)
    limits.take("bob", 1)
    clock = caught.value.wait_s
    limits.take("ada", 1)
    with pytest.raises(LimitReached):
        limits.take("ada", 1)
    clock = 10_000.0
    limits.take("ada", 600)
    with pytest.raises(LimitReached):
        limits.take("ada", 1)


def test_people_are_forgotten_before_they_take_memory() -> None:
    clock = 0.0
    limits = Limits(600, lambda: clock)
    limits.charge("ada", 5000)
    for number in range(2 * MAX_PEOPLE):
        limits.charge(str(number), 1)
    assert len(limits._buckets) <= MAX_PEOPLE
    with pytest.raises(LimitReached):
        limits.take("ada", 1)


def test_a_household_is_one_person() -> None:
    assert network_of("192.0.2.7") == "192.0.2.7"
    assert network_of("2001:db8:1:2:aaaa::1") == network_of("2001:db8:1:2::9")
    assert network_of("2001:db8:1:2::9") != network_of("2001:db8:1:3::9")
    assert network_of("testclient") == "testclient"


def test_the_limit_counts_what_was_accepted_and_guesses_once_they_are_wanted(
    worker: Worker, model: ImageModel
) -> None:
    metered = MeteredBackend(worker, Metrics(), Limits(100, lambda: 0.0))
    for _ in range(30):
        with pytest.raises(RequestError, match="too long"):
            metered.submit(make_job(model, prompt="lake " * 40))
    guess = metered.submit(make_job(model, kind="speculative", steps=100))
    finish([metered.submit(make_job(model, steps=60))])
    guess.promote()
    finish([guess])
    with pytest.raises(LimitReached):
        metered.submit(make_job(model))
    assert value(metered, "refusals_total", reason="limit") == 1


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged, as JSON."""
    root, mine = logging.getLogger(), logging.getLogger("app")
    before = root.handlers, root.level, mine.level
    stream = io.StringIO()
    logs.start_logging("json", "info", stream)
    yield stream
    root.handlers = before[0]
    root.setLevel(before[1])
    mine.setLevel(before[2])


def test_the_log_tells_of_each_picture_but_not_of_its_prompt(
    metered: MeteredBackend, model: ImageModel, log: io.StringIO
) -> None:
    finish([metered.submit(make_job(model, prompt="snowy cabin", negative_prompt="boat"))])
    entry = json.loads(log.getvalue().splitlines()[-1])
    assert (entry["message"], entry["kind"], entry["outcome"]) == ("preview done", "preview", "done")
    assert entry["seconds"] >= entry["waited"] >= 0
    assert "cabin" not in log.getvalue()
    assert "boat" not in log.getvalue()


def test_nobody_can_forge_an_entry(log: io.StringIO) -> None:
    line = 'x"}\n{"level": "error", "message": "forged"}'
    logging.getLogger("app").info("%s", line, extra={"route": line})
    (entry,) = map(json.loads, log.getvalue().splitlines())
    assert entry["message"] == entry["route"] == line
    record = logging.makeLogRecord({"msg": line, "route": line, "levelname": "INFO"})
    assert len(logs.TextLines().format(record).splitlines()) == 1


def test_errors_keep_their_traceback_in_the_log_in_one_line(log: io.StringIO) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("app").exception("it failed")
    (entry,) = map(json.loads, log.getvalue().splitlines())
    assert "ValueError: why" in entry["error"]


def served(metered: MeteredBackend, token: str | None = None) -> TestClient:
    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    routes = [*service_routes(metered, token), Route("/echo/{secret}", echo, methods=["POST"])]
    return TestClient(Starlette(routes=routes, middleware=middleware.middleware()))


def test_health_and_readiness(metered: MeteredBackend, worker: Worker) -> None:
    client = served(metered)
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    worker.healthy = False
    assert client.get("/healthz").status_code == 503
    assert client.get("/readyz").json() == {"state": "broken"}
    worker.healthy = True
    metered.drain(0)
    assert client.get("/healthz").status_code == 200
    assert (client.get("/readyz").status_code, client.get("/readyz").json()) == (503, {"state": "stopping"})


def test_metrics_are_for_whoever_has_the_token(metered: MeteredBackend) -> None:
    assert served(metered).get("/metrics").status_code == 404
    client = served(metered, TOKEN)
    for wrong in ({}, {"Authorization": "Bearer "}, {"Authorization": TOKEN}, {"Authorization": "Bearer é"}):
        headers = [(key.encode(), value.encode()) for key, value in wrong.items()]
        assert client.get("/metrics", headers=headers).status_code == 401
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    assert list(text_string_to_metric_families(answer.text))


def test_each_request_has_an_id_and_its_path_is_not_logged(metered: MeteredBackend, log: io.StringIO) -> None:
    client = served(metered)
    first = client.post("/echo/hidden", content=b"abc")
    assert first.text == "3"
    assert first.headers["x-content-type-options"] == "nosniff"
    given = client.post("/echo/hidden", headers={"X-Request-ID": "from-proxy.1"})
    assert given.headers["x-request-id"] == "from-proxy.1"
    for forged in ("a b", "x" * 65, "a/b", 'x"'):
        assert client.get("/healthz", headers={"X-Request-ID": forged}).headers["x-request-id"] != forged
    entries = [json.loads(line) for line in log.getvalue().splitlines()]
    assert entries[0]["request"] == first.headers["x-request-id"]
    assert (entries[0]["route"], entries[0]["status"]) == ("/echo/{secret}", 200)
    assert "hidden" not in log.getvalue()


def test_bodies_have_a_largest_size(metered: MeteredBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_BODY_BYTES", 1000)
    client = served(metered)
    assert client.post("/echo/a", content=bytes(1000)).text == "1000"
    assert client.post("/echo/a", content=bytes(1001)).status_code == 413
    in_parts = client.post("/echo/a", content=(bytes(400) for _ in range(3)))
    assert in_parts.status_code == 413
    assert "the limit is" in in_parts.json()["detail"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"data": [NaN]}', "not JSON"),
        (b'{"data": ["\\ud800"]}', "not JSON"),
        (b"[]", "an object"),
        (b'{"data": [], "session_hash": "a b", "fn_index": 0}', "session_hash"),
        (b'{"data": [], "session_hash": "a", "fn_index": 99}', "no function"),
        (b'{"data": [], "session_hash": "a", "fn_index": true}', "no function"),
        (b'{"data": [], "fn_index": 0}', "are missing"),
        (b'{"data": {}, "session_hash": "a", "fn_index": 0}', "must be a list"),
    ],
)
def test_events_without_their_form_are_refused_in_words(body: bytes, words: str) -> None:
    with gr.Blocks() as page:
        gr.Button().click(lambda: None, api_name="press")
    assert words in problem_of(body, page, "/gradio_api/queue/join")
    right = b'{"data": [], "session_hash": "a", "fn_index": 0}'
    assert problem_of(right, page, "/gradio_api/queue/join") == ""
    assert problem_of(b'{"data": []}', page, "/gradio_api/call/press") == ""
    assert "no such endpoint" in problem_of(b'{"data": []}', page, "/gradio_api/call/other")
    assert "must have 0 values" in problem_of(b'{"data": [1]}', page, "/gradio_api/run/press")


def test_events_with_too_few_values_are_refused_in_words() -> None:
    def preview(prompt: str, seed: int = 1) -> str:
        return f"{prompt} {seed}"

    with gr.Blocks() as page:
        gr.api(preview, api_name="preview")

    def wrong(body: bytes, path: str) -> str:
        return problem_of(body, page, f"/gradio_api/{path}")

    words = wrong(b'{"data": ["a lake"]}', "call/preview")
    assert words.startswith("data must have 2 values, not 1. At /gradio_api/call/v2/preview")
    assert wrong(b'{"data": ["a lake", 7]}', "call/preview") == ""
    assert wrong(b'{"prompt": "a lake"}', "call/v2/preview") == ""
    assert wrong(b"{}", "call/v2/preview/") == "The argument prompt is missing."
    unknown = wrong(b'{"prompt": "a lake", "sede": 1}', "call/v2/preview")
    assert unknown == "There is no argument 'sede'. There are: prompt, seed."
    assert "no such endpoint" in wrong(b"{}", "call/v2/other")


def test_what_the_page_does_not_need_is_closed() -> None:
    for path in ("/gradio_api/proxy=http://example.org/a", "/proxy=a\nb", "/gradio_api/component_server"):
        assert UNUSED.fullmatch(path)
    for path in ("/", "/gradio_api/queue/join", "/gradio_api/file=a", "/live", "/config"):
        assert not UNUSED.fullmatch(path)

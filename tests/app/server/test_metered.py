"""A metered backend counts, logs and limits requests, and ends in order."""

import io
import itertools
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.jobs.handle import Handle, merge
from app.jobs.job import Busy, Cancelled, Done, Failed, RequestError, Step
from app.models import ImageModel
from app.server.limits import LimitReached, Limits
from app.server.metered import HANDED_BACK, MAX_PERSON_STEPS, MeteredBackend
from app.server.metrics import Metrics
from app.worker import Worker
from tests.conftest import make_job


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


def test_draining_fails_with_a_message_what_takes_too_long(
    metered: MeteredBackend, model: ImageModel
) -> None:
    handles = metered.submit_all([make_job(model, kind="refine", steps=100, seed=seed) for seed in range(8)])
    began = time.monotonic()
    assert not metered.drain(0.05)
    assert time.monotonic() - began < 5
    assert finish(handles) == [Failed(HANDED_BACK)] * 8


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


def test_one_person_waits_for_a_bounded_number_of_steps_in_all_sessions(
    model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless: Any = SimpleNamespace(
        facts=model.facts, healthy=True, submit_all=lambda jobs: [Handle(endless, job) for job in jobs]
    )
    metered = MeteredBackend(endless, Metrics())
    client = SimpleNamespace(host="192.0.2.1")
    request = SimpleNamespace(username=None, client=client)
    monkeypatch.setattr("app.server.metered.current_request", lambda: request)
    sessions = (f"session {number}" for number in itertools.count())
    handles: list[Handle] = []

    def ask() -> None:
        handles.append(metered.submit(make_job(model, steps=100, owner=next(sessions))))

    for _ in range(MAX_PERSON_STEPS // 100):
        ask()
    with pytest.raises(Busy, match=r"64 pictures that you, or others at your address.*try again"):
        ask()
    metered.submit(make_job(model, kind="speculative", owner=next(sessions)))
    request.username = "ada"
    ask()
    request.username = None
    client.host = "192.0.2.2"
    ask()
    client.host = "192.0.2.1"
    handles[0].tell(Cancelled())
    ask()
    with pytest.raises(Busy):
        ask()


def test_the_log_tells_of_each_picture_but_not_of_its_prompt(
    metered: MeteredBackend, model: ImageModel, log: io.StringIO
) -> None:
    finish([metered.submit(make_job(model, prompt="snowy cabin", negative_prompt="boat"))])
    entry = json.loads(log.getvalue().splitlines()[-1])
    assert (entry["message"], entry["kind"], entry["outcome"]) == ("preview done", "preview", "done")
    assert entry["seconds"] >= entry["waited"] >= 0
    assert "cabin" not in log.getvalue()
    assert "boat" not in log.getvalue()

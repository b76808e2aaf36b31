"""A backend that is still loading: said in words, and then it is there."""

import threading
from pathlib import Path

import pytest

from app.backends.loading import Loading
from app.jobs.job import Busy, Done, RequestError
from app.models import ImageModel, ModelError
from app.page.views import status_view
from app.server import api
from app.server.metered import MeteredBackend
from app.server.metrics import Metrics
from app.worker import Worker
from tests.conftest import make_job


def test_until_it_is_there_it_says_so_and_then_it_works(model: ImageModel, worker: Worker) -> None:
    arrived = threading.Event()

    def start() -> Worker:
        arrived.wait()
        return worker

    loading = Loading(start)
    metered = MeteredBackend(loading, Metrics())
    assert loading.healthy and metered.state == "loading"
    assert "still loading" in status_view(metered)["message"]
    with pytest.raises(RequestError, match="still loading"):
        loading.submit(make_job(model))
    arrived.set()
    assert loading.wait() is worker
    status = status_view(metered)
    assert (status["ready"], status["message"], metered.state) == (True, "", "ready")
    assert "tiny" in status["model"]
    assert isinstance(list(metered.submit(make_job(model)).events())[-1], Done)


def test_programs_wait_for_it_or_hear_when_to_come_back(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = threading.Event()

    def start() -> Worker:
        arrived.wait()
        return worker

    loading = Loading(start)
    monkeypatch.setattr(api, "LOADING_WAIT_S", 0.3)
    with pytest.raises(Busy, match="call again in a minute"):
        api._facts_of(loading)
    monkeypatch.setattr(api, "LOADING_WAIT_S", 60)
    threading.Timer(0.3, arrived.set).start()
    assert api._facts_of(loading) is worker.facts
    monkeypatch.setattr(api, "_WAITING", threading.Semaphore(0))
    assert api._facts_of(loading) is worker.facts


def test_what_went_wrong_is_raised_to_whoever_waits(tmp_path: Path) -> None:
    def start() -> Worker:
        raise ModelError("There is no such model.")

    loading = Loading(start)
    with pytest.raises(ModelError, match="no such model"):
        loading.wait()
    assert not loading.healthy
    with pytest.raises(Busy):
        _ = loading.facts
    loading.close()


def test_closing_while_it_loads_closes_what_arrives(model: ImageModel) -> None:
    arrived = threading.Event()

    def start() -> Worker:
        arrived.wait()
        return Worker(model)

    loading = Loading(start)
    loading.close()
    arrived.set()
    backend = loading.wait()
    with pytest.raises(RequestError, match="shutting down"):
        backend.submit(make_job(model))

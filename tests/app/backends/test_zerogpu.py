"""The backend for ZeroGPU Spaces, over the package `spaces` itself; what stands in is in space.py."""

import multiprocessing
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import copy_context
from mmap import mmap
from pathlib import Path
from typing import Any

import gradio_client
import numpy as np
import pytest
from gradio.context import LocalContext
from PIL import Image

from app.backends import on_zerogpu, zerogpu
from app.backends.zerogpu import COSTS, LONGEST_S, START_S, ZeroGpu
from app.history.shelf import History
from app.jobs.handle import Handle
from app.jobs.job import (
    LAST_EVENTS,
    Cancelled,
    Done,
    Event,
    Failed,
    Queued,
    RequestError,
    Start,
    Started,
    Step,
    StoredPicture,
)
from app.models import ImageModel
from app.page import handlers
from app.page.click import Click, Form, Studio
from app.page.session import Session
from app.page.sketches import Sketches
from app.worker.loop import UNHEALTHY_FAILURES, Worker
from solver.diffusion import TOKENIZING
from tests.app.backends import space as spaces_and_gpus
from tests.app.backends.space import Refusal, Scheduler, become_space, scheduler, token_of, visitor
from tests.conftest import InterceptedModel, free_port, make_job

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
# Nothing here takes seconds, but machines can be busy.
PATIENCE_S = 900


class HeldModel(InterceptedModel):
    """A model whose calls, in whatever process, are counted and can be held back."""

    shared: mmap

    def hold(self) -> "HeldModel":
        self.__dict__["shared"] = mmap(-1, 3)
        return self

    @property
    def calls(self) -> int:
        return self.shared[0]

    def wait_until_called(self) -> None:
        wait_until(lambda: self.shared[1] == 1)

    def let_go(self) -> None:
        self.shared[2] = 1

    def denoise(self, *args: Any) -> Any:
        self.shared[1] = 1
        wait_until(lambda: self.shared[2] == 1)
        self.shared[0] += 1
        return super().denoise(*args)


@pytest.fixture(scope="module")
def space() -> Iterator[Scheduler]:
    with pytest.MonkeyPatch.context() as patch, scheduler() as handing_out:
        become_space(patch, handing_out.url)
        yield handing_out


@pytest.fixture(autouse=True)
def never_for_ever(space: Scheduler) -> Iterator[None]:
    timer = threading.Timer(PATIENCE_S, space.kill)
    timer.start()
    yield
    timer.cancel()


@pytest.fixture(scope="module")
def backend(model: ImageModel, space: Scheduler) -> Iterator[ZeroGpu]:
    backend = ZeroGpu(model)
    yield backend
    backend.close()


@pytest.fixture
def held(model: ImageModel) -> HeldModel:
    return HeldModel(**vars(model)).hold()


@pytest.fixture
def held_backend(held: HeldModel, space: Scheduler) -> Iterator[ZeroGpu]:
    """A backend whose pictures wait until the model is let go."""
    backend = ZeroGpu(held)
    yield backend
    held.let_go()
    backend.close()


def wait_until(condition: Any) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.005)


def events_of(handle: Handle) -> list[Event]:
    """All events; fails where the last does not come."""
    inbox: queue.SimpleQueue[tuple[Handle, Event]] = queue.SimpleQueue()
    handle.listen(inbox)
    events: list[Event] = []
    while not events or not isinstance(events[-1], LAST_EVENTS):
        events.append(inbox.get(timeout=PATIENCE_S)[1])
    return events


def last(handle: Handle) -> Any:
    return events_of(handle)[-1]


def levels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def test_a_grid_made_in_a_fork_is_the_one_that_the_worker_makes(backend: ZeroGpu, model: ImageModel) -> None:
    jobs = [make_job(model, seed=seed, steps=5, guidance=2 + seed) for seed in range(4)]
    worker = Worker(model, costs=COSTS)
    here = [last(handle) for handle in worker.submit_all(jobs)]
    worker.close()
    handles = backend.submit_all(jobs)
    for job, handle, expected in zip(jobs, handles, here, strict=True):
        done = last(handle)
        assert isinstance(done, Done)
        assert np.abs(levels(done.picture) - levels(expected.picture)).max() <= 1
        assert (done.record.job, done.record.revision) == (job, model.facts.revision)
        assert done.record.evaluations == expected.record.evaluations


def test_events_tell_the_whole_story(backend: ZeroGpu) -> None:
    events = events_of(backend.submit(make_job(backend._model, steps=6)))
    assert isinstance(events[0], Queued) and isinstance(events[1], Started)
    steps = [event for event in events[2:-1] if isinstance(event, Step)]
    assert [(step.step, step.steps) for step in steps] == [(i, 6) for i in range(1, 6)]
    assert isinstance(events[-1], Done)
    assert len(events) == 8


def test_a_request_is_one_call_and_seeds_go_in_and_pictures_come_out(
    backend: ZeroGpu, space: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spaces.zero import wrappers

    sent: list[Any] = []
    put = wrappers.Queue.put

    def watched_put(queue: Any, item: Any) -> None:
        sent.append(item)
        put(queue, item)

    monkeypatch.setattr(wrappers.Queue, "put", watched_put)
    before = len(space.schedules)
    jobs = [make_job(backend._model, seed=seed) for seed in range(4)]
    events = [event for handle in backend.submit_all(jobs) for event in events_of(handle)]
    assert len(space.schedules) == before + 1
    ((arguments, options), _), *others = sent
    assert (arguments[0], options, others) == (jobs, {}, [])
    assert len(pickle.dumps(arguments)) < 2000
    assert not any(b"torch" in pickle.dumps(event) for event in (arguments, *events))


def test_the_gpu_is_taken_in_another_process_and_given_back(backend: ZeroGpu, space: Scheduler) -> None:
    last(backend.submit(make_job(backend._model)))
    assert space.pids and os.getpid() not in space.pids
    wait_until(lambda: not space.lent)
    assert not space.releases[-1]


def test_the_quota_is_that_of_the_visitor_who_asked(backend: ZeroGpu, space: Scheduler) -> None:
    def as_visitor(name: str) -> None:
        LocalContext.request.set(visitor(name))
        last(backend.submit(make_job(backend._model)))

    for name in ("ann", "bo"):
        copy_context().run(as_visitor, name)
        assert space.schedules[-1]["token"] == token_of(name)


def test_no_more_time_is_asked_for_than_is_needed(backend: ZeroGpu, space: Scheduler) -> None:
    def seconds(count: int, **changes: object) -> float:
        return backend.duration([make_job(backend._model, **changes)] * count)

    assert START_S < seconds(1) < seconds(4) < seconds(4, steps=8) < 20
    assert seconds(1, guidance=1) < seconds(1, guidance=3)
    assert seconds(1, solver="heun") > seconds(1, solver="ddim"), "its steps are two calls each"
    assert seconds(1, kind="refine", steps=40) < 20
    assert seconds(50, steps=100) == LONGEST_S
    jobs = [make_job(backend._model, steps=8)] * 3
    for handle in backend.submit_all(jobs):
        last(handle)
    assert int(space.schedules[-1]["durationSeconds"]) == int(backend.duration(jobs))


def test_what_can_not_be_done_is_refused_before_a_gpu_is_asked_for(
    backend: ZeroGpu, space: Scheduler
) -> None:
    before = len(space.schedules)
    fine = make_job(backend._model)
    with pytest.raises(RequestError, match="too long"):
        backend.submit_all([fine, make_job(backend._model, prompt="lake " * 30)])
    with pytest.raises(RequestError, match="The model sdxl is not running here"):
        backend.submit(make_job(backend._model, model="sdxl"))
    with pytest.raises(RequestError, match="in advance"):
        backend.submit(make_job(backend._model, kind="speculative"))
    assert len(space.schedules) == before
    assert not backend.speculates


def test_a_start_that_is_gone_is_refused_before_a_gpu_is_asked_for(
    backend: ZeroGpu, model: ImageModel
) -> None:
    gone = Start(StoredPicture(Path("/nowhere") / f"{'a' * 32}.png"))
    for _ in range(2 * UNHEALTHY_FAILURES):
        with pytest.raises(RequestError, match="gone"):
            backend.submit(make_job(model, start=gone))
    assert backend.healthy


def test_cancelling_is_told_at_once_and_stops_the_fork_at_its_next_step(
    held: HeldModel, held_backend: ZeroGpu, space: Scheduler
) -> None:
    handle = held_backend.submit(make_job(held, kind="refine", steps=100))
    held.wait_until_called()
    handle.cancel()
    assert handle.ended
    assert last(handle) == Cancelled()
    held.let_go()
    wait_until(lambda: not space.lent)
    assert held.calls <= 3
    assert not space.releases[-1], "the GPU came back as from any other request"
    assert isinstance(last(held_backend.submit(make_job(held))), Done)


def test_one_of_a_grid_can_be_cancelled(held: HeldModel, held_backend: ZeroGpu) -> None:
    handles = held_backend.submit_all([make_job(held, seed=seed) for seed in range(4)])
    held.wait_until_called()
    handles[1].cancel()
    held.let_go()
    ends = [type(last(handle)) for handle in handles]
    assert ends == [Done, Cancelled, Done, Done]


def test_all_jobs_of_an_owner_end_together(held: HeldModel, held_backend: ZeroGpu, space: Scheduler) -> None:
    before = len(space.pids)
    mine = held_backend.submit_all([make_job(held, owner="me", seed=seed) for seed in range(2)])
    other = held_backend.submit(make_job(held, owner="you"))
    wait_until(lambda: len(space.pids) == before + 2)
    assert space.pids[-1] != space.pids[-2], "two requests at once are in two processes"
    held_backend.cancel_owner("me")
    assert [last(handle) for handle in mine] == [Cancelled()] * 2
    held.let_go()
    assert isinstance(last(other), Done)


def test_closing_ends_what_there_is_and_takes_nothing_more(held: HeldModel, space: Scheduler) -> None:
    backend = ZeroGpu(held)
    handle = backend.submit(make_job(held, kind="refine", steps=100))
    held.wait_until_called()
    held.let_go()
    backend.close()
    assert last(handle) == Cancelled()
    with pytest.raises(RequestError, match="shutting down"):
        backend.submit(make_job(held))


def test_a_failing_step_fails_in_words(space: Scheduler, model: ImageModel) -> None:
    class Broken(HeldModel):
        def denoise(self, *args: Any) -> Any:
            raise RuntimeError("the device is on fire")

    failed = last(ZeroGpu(Broken(**vars(model)).hold()).submit(make_job(model)))
    assert isinstance(failed, Failed)
    assert "try again" in failed.message and "fire" not in failed.message


def test_an_error_in_the_fork_fails_in_words_and_later_requests_work(
    model: ImageModel, space: Scheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_worker(*args: object) -> Worker:
        raise RuntimeError("a bug")

    backend = ZeroGpu(model)
    with monkeypatch.context() as patch:
        patch.setattr(zerogpu, "Worker", no_worker)
        handles = backend.submit_all([make_job(model, seed=seed) for seed in range(2)])
        for handle in handles:
            failed = last(handle)
            assert isinstance(failed, Failed)
            assert "try again" in failed.message and "bug" not in failed.message
    assert "failed with 2 pictures" in caplog.text
    assert isinstance(last(backend.submit(make_job(model))), Done)


def test_a_fork_that_is_killed_fails_in_words_and_later_requests_work(
    held: HeldModel, held_backend: ZeroGpu, space: Scheduler
) -> None:
    before = len(space.pids)
    handles = held_backend.submit_all([make_job(held, seed=seed) for seed in range(2)])
    held.wait_until_called()
    wait_until(lambda: len(space.pids) > before)
    space.kill()
    for handle in handles:
        failed = last(handle)
        assert isinstance(failed, Failed)
        assert "GPU was taken away" in failed.message
    held.let_go()
    assert isinstance(last(held_backend.submit(make_job(held))), Done)


def test_a_fork_that_ends_by_itself_fails_in_words(space: Scheduler, model: ImageModel) -> None:
    class Leaving(HeldModel):
        def denoise(self, *args: Any) -> Any:
            os._exit(3)

    failed = last(ZeroGpu(Leaving(**vars(model)).hold()).submit(make_job(model)))
    assert isinstance(failed, Failed)
    assert "GPU was taken away" in failed.message


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (spaces_and_gpus.OUT_OF_QUOTA, "used up for now. Log in .* Try again in 0:12:00."),
        (spaces_and_gpus.TOO_LONG, "fewer steps or fewer previews"),
        (spaces_and_gpus.QUEUE_TIMEOUT, "try again in a minute"),
        (spaces_and_gpus.NO_GPU, "come back later"),
    ],
)
def test_a_visitor_who_gets_no_gpu_is_told_what_to_do(
    backend: ZeroGpu, space: Scheduler, monkeypatch: pytest.MonkeyPatch, refusal: Refusal, words: str
) -> None:
    def ask() -> Any:
        LocalContext.request.set(visitor("ann"))
        return last(backend.submit(make_job(backend._model)))

    with monkeypatch.context() as patch:
        patch.setattr(space, "refusal", refusal)
        for _ in range(UNHEALTHY_FAILURES):
            failed = copy_context().run(ask)
            assert isinstance(failed, Failed)
            assert re.search(words, failed.message), failed.message
    assert backend.healthy, "that is nothing to mend here"
    assert isinstance(copy_context().run(ask), Done)


def test_a_broken_space_is_told(model: ImageModel, space: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ZeroGpu(model)
    with monkeypatch.context() as patch:
        patch.setattr(space, "refusal", spaces_and_gpus.BROKEN)
        for _ in range(UNHEALTHY_FAILURES):
            assert backend.healthy
            failed = last(backend.submit(make_job(model)))
            assert isinstance(failed, Failed) and "try again" in failed.message
        assert not backend.healthy
    assert isinstance(last(backend.submit(make_job(model))), Done)
    wait_until(lambda: backend.healthy)


def test_a_fork_waits_for_whoever_reads_a_prompt() -> None:
    holding = threading.Event()

    def read() -> None:
        with TOKENIZING:
            holding.set()
            time.sleep(0.3)

    def check() -> None:
        os._exit(0 if TOKENIZING.acquire(timeout=10) else 1)

    reader = threading.Thread(target=read)
    reader.start()
    holding.wait()
    process = multiprocessing.get_context("fork").Process(target=check)
    process.start()
    process.join()
    assert process.exitcode == 0
    reader.join()


def test_the_page_works_over_it(backend: ZeroGpu, tmp_path: Path) -> None:
    session, studio = Session(History(tmp_path).shelf("0" * 64)), Studio(backend, Sketches())
    form = Form("snowy mountains", "", 4, 4, 3.0, "consistency", random_seeds=False, seed=10, full_steps=8)
    handlers.preview(Click(studio, session, form=form))
    session.settle()
    assert session.grid
    assert [(tile.job.seed, bool(tile.name)) for tile in session.grid.tiles] == [
        (seed, True) for seed in range(10, 14)
    ]
    handlers.refine(Click(studio, session, {"grid": session.grid.id, "seed": 12}, Form(full_steps=12)))
    session.settle()
    stage = session.stage
    assert stage and (stage.state, stage.percent, stage.job.seed) == ("done", 100, 12)


@pytest.mark.parametrize("installed", [True, False])
def test_without_a_space_it_works_in_this_process(
    model: ImageModel, space: Scheduler, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr("spaces.config.Config.zero_gpu", False)
    if not installed:
        monkeypatch.setattr(zerogpu, "spaces", None)
    before = len(space.schedules)
    backend = ZeroGpu(model)
    requests = [backend.submit_all([make_job(model, seed=seed) for seed in range(2)]) for _ in range(2)]
    assert all(isinstance(last(handle), Done) for handles in requests for handle in handles)
    assert len(space.schedules) == before
    backend.close()


@pytest.mark.parametrize(
    ("value", "answer"), [("true", True), ("True", True), ("1", True), ("false", False), ("", False)]
)
def test_a_space_is_recognised_as_the_package_does(
    monkeypatch: pytest.MonkeyPatch, value: str, answer: bool
) -> None:
    from spaces.config import boolean

    monkeypatch.setenv("SPACES_ZERO_GPU", value)
    assert on_zerogpu() == boolean(value) == answer


def test_app_py_on_a_space(tiny_folder: Path, model: ImageModel, tmp_path: Path) -> None:
    """The whole program with CUDA as the package emulates it; in the forked process that is the CPU."""
    port = free_port()
    arguments = ["app.py", "--port", str(port), "--model", str(tiny_folder), "--data", str(tmp_path)]
    program = (
        "import runpy, sys; from tests.app.backends.space import become_space_for_good; "
        "become_space_for_good(); "
        f"sys.argv = {arguments!r}; runpy.run_path('app.py', run_name='__main__')"
    )
    with scheduler() as handing_out:
        settings = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": handing_out.url}
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | settings | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that its forks can be ended with it
        )
        timer = threading.Timer(PATIENCE_S, process.kill)
        timer.start()
        try:
            assert process.stdout
            said = [process.stdout.readline()]
            while said[-1] and "Ready:" not in said[-1]:
                said.append(process.stdout.readline())
            assert said[-1], "".join(said)
            url, downloads = f"http://127.0.0.1:{port}", tmp_path / "downloads"
            client = gradio_client.Client(url, verbose=False, download_files=downloads)
            files, records = client.predict("snowy mountains", count=4, seed=3, api_name="/preview")
            assert [record["seed"] for record in records] == [3, 4, 5, 6]
            worker = Worker(model, costs=COSTS)
            for file, seed in zip(files, range(3, 7), strict=True):
                expected = last(worker.submit(make_job(model, seed=seed, steps=6)))
                difference = np.abs(levels(Image.open(file)) - levels(expected.picture))
                assert difference.mean() <= 1 and difference.max() <= 8, "bfloat16 there, float32 here"
            worker.close()
            assert handing_out.started and len(handing_out.schedules) == 1
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            timer.cancel()

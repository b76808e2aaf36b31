import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from app.backends import replicas as front
from app.backends.cluster import NAME, cpus_each, start
from app.backends.replica import Counts, Message, Replica, ReplicaSettings, application
from app.backends.replicas import Replicas
from app.history.shelf import History
from app.jobs.handle import Handle, merge
from app.jobs.job import Busy, Cancelled, Done, Failed, Job, Queued, Record, RequestError, Step
from app.models import Choice, ImageModel, ModelError
from app.page import handlers
from app.page.click import Click, Form, Studio
from app.page.session import Session
from app.page.sketches import Sketches
from app.worker import Worker
from app.worker.loop import UNHEALTHY_FAILURES
from app.worker.queue import MAX_PICTURES
from tests.app.worker.test_worker import last, pixels
from tests.conftest import free_port, make_job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def replicas(tiny_folder: Path) -> Iterator[Replicas]:
    """Two replicas on a cluster of their own."""
    data = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
    running = start(Choice(str(tiny_folder), "cpu"), data, replicas=2)
    yield running
    running.close()
    shutil.rmtree(data)


def counts() -> list[Counts]:
    """What the replicas have done so far."""
    return serve.get_app_handle(NAME).broadcast("counts").results(timeout_s=30)


def steps_made() -> int:
    return sum(sum(each.made.values()) for each in counts())


def await_steps(handles: Sequence[Handle]) -> None:
    """Wait until one of them has made a step."""
    for _, event in merge(handles):
        if isinstance(event, Step):
            return


def refinements(model: ImageModel, count: int, **changes: Any) -> list[Job]:
    """Long ones, of 200 denoiser calls."""
    fields = {"kind": "refine", "steps": 100, "solver": "heun"} | changes
    return [make_job(model, seed=seed, **fields) for seed in range(count)]


def test_pictures_and_events_are_those_of_a_worker_here(replicas: Replicas, worker: Worker) -> None:
    job = make_job(worker.model, steps=5)
    assert replicas.facts.revision == worker.facts.revision
    events = list(replicas.submit(job).events())
    assert isinstance(events[0], Queued)
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4]
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.record.job, done.record.revision) == (job, worker.facts.revision)
    assert abs(pixels(done) - pixels(last(worker.submit(job)))).max() <= 1


def test_a_grid_is_made_together(replicas: Replicas, worker: Worker) -> None:
    jobs = [make_job(worker.model, seed=seed, owner="grid") for seed in range(4)]
    before = {each.process: each.ticks for each in counts()}
    ends = [last(handle) for handle in replicas.submit_all(jobs)]
    idle, used = sorted(each.ticks - before[each.process] for each in counts())
    # How many go at a time depends on what the replica measured when it started, perhaps at a busy moment.
    assert idle == 0 and 4 <= used <= 16, "one replica has made all four"
    for end, handle in zip(ends, worker.submit_all(jobs), strict=True):
        assert abs(pixels(end) - pixels(last(handle))).max() <= 1


def test_an_owner_stays_with_a_replica_and_owners_are_spread(replicas: Replicas, model: ImageModel) -> None:
    used = []
    for owner in "aabbccddeeffgghh":
        before = {each.process: each.ticks for each in counts()}
        last(replicas.submit(make_job(model, owner=owner)))
        used.append(next(each.process for each in counts() if each.ticks > before[each.process]))
    assert used[::2] == used[1::2]
    assert len(set(used)) == 2


def test_cancelling_reaches_the_replica(replicas: Replicas, model: ImageModel) -> None:
    handles = replicas.submit_all(refinements(model, 8))
    await_steps(handles)
    before = steps_made()
    for handle in handles:
        handle.cancel()
    ends = [last(handle) for handle in handles]
    assert ends.count(Cancelled()) >= 6, "two at most were done by then"
    assert_stops(before, 8 * 200)


def assert_stops(before: int, all_of_it: int) -> None:
    """Check that the replicas come to rest, long before `all_of_it` is made."""
    made = before
    deadline = time.monotonic() + 20
    while True:
        time.sleep(0.3)
        made, earlier = steps_made(), made
        if made == earlier:
            break
        assert time.monotonic() < deadline, "the replicas go on and on"
    assert made - before < all_of_it / 2


def test_all_jobs_of_an_owner_end_together(replicas: Replicas, model: ImageModel) -> None:
    mine = replicas.submit_all(refinements(model, 3, owner="me"))
    other = replicas.submit(make_job(model, steps=30, owner="you"))
    replicas.cancel_owner("me")
    assert [last(handle) for handle in mine] == [Cancelled()] * 3
    assert isinstance(last(other), Done)


def test_a_guess_is_promoted_over_the_wire(replicas: Replicas, model: ImageModel) -> None:
    guesses = replicas.submit_all(refinements(model, 3, kind="speculative", steps=10, owner="guess"))
    time.sleep(1)
    assert not any(guess.ended for guess in guesses), "guesses wait when they have been taken far enough"
    guesses[0].promote()
    guesses[1].favour()
    assert isinstance(last(guesses[0]), Done)
    assert isinstance(last(guesses[1]), Done)
    assert not guesses[2].ended
    guesses[2].cancel()
    assert last(guesses[2]) == Cancelled()


def test_too_much_is_refused_in_words(replicas: Replicas, model: ImageModel) -> None:
    with pytest.raises(Busy, match="are in line"):
        replicas.submit_all([make_job(model, steps=1)] * (MAX_PICTURES + 1))


def test_what_cannot_be_done_is_refused_at_once(replicas: Replicas, model: ImageModel) -> None:
    with pytest.raises(RequestError, match=r"The prompt is too long: 30 .* reads 22"):
        replicas.submit(make_job(model, prompt="lake " * 30))
    with pytest.raises(RequestError, match="The model sdxl is not running here"):
        replicas.submit(make_job(model, model="sdxl"))


def test_the_page_works_over_it(replicas: Replicas, tmp_path: Path) -> None:
    session, studio = Session(History(tmp_path).shelf("0" * 64)), Studio(replicas, Sketches())
    handlers.preview(
        Click(studio, session, form=Form("snowy mountains", steps=4, seed=5, random_seeds=False))
    )
    session.settle()
    assert session.grid and all(tile.name for tile in session.grid.tiles)
    wish = {"grid": session.grid.id, "seed": 6}
    handlers.point_at(Click(studio, session, wish))
    handlers.refine(Click(studio, session, wish, Form(full_steps=20)))
    session.settle()
    assert session.stage and session.stage.state == "done"


def test_a_stream_that_is_cancelled_takes_its_jobs_along(replicas: Replicas, model: ImageModel) -> None:
    stream = serve.get_app_handle(NAME).stream.options(stream=True)
    said: Any = stream.remote("page", {str(job.seed): job for job in refinements(model, 8)})
    assert next(said) is None
    before = steps_made()
    said.cancel()
    assert_stops(before, 8 * 200)


def test_no_request_is_lost_with_a_replica(replicas: Replicas, worker: Worker) -> None:
    jobs = [replace(job, owner=f"owner {job.seed}") for job in refinements(worker.model, 6)]
    handles = [replicas.submit(job) for job in jobs]
    guess = replicas.submit(make_job(worker.model, kind="speculative", steps=10, owner="owner 0"))
    await_steps(handles)
    before = {each.process: each.ticks for each in counts()}
    while not (busy := [each.process for each in counts() if each.ticks > before[each.process]]):
        assert not all(handle.ended for handle in handles), "they were over before one could be killed"
        time.sleep(0.02)
    os.kill(busy[0], signal.SIGKILL)
    guess.promote()
    ends = [last(handle) for handle in handles]
    assert all(isinstance(end, Done) for end in ends)
    assert any(began_again(handle) for handle in handles)
    for end, handle in zip(ends, worker.submit_all(jobs), strict=True):
        assert abs(pixels(end) - pixels(last(handle))).max() <= 1
    assert isinstance(last(guess), Done), "also what was wished while the replica died"


def began_again(handle: Handle) -> bool:
    steps = [event.step for event in handle.events() if isinstance(event, Step)]
    return steps != sorted(steps)


# ---- one replica without a cluster


@pytest.fixture
def replica(tiny_folder: Path) -> Iterator[Replica]:
    replica = Replica(Choice(str(tiny_folder), "cpu"))
    yield replica
    replica._worker.close()


def test_a_broken_device_or_worker_is_noticed(replica: Replica) -> None:
    replica.check_health()
    replica._worker._failures = UNHEALTHY_FAILURES
    with pytest.raises(RuntimeError, match="have all failed"):
        replica.check_health()
    replica._worker._failures = 0
    replica._worker.close()
    with pytest.raises(RuntimeError, match="thread"):
        replica.check_health()


def test_who_stops_listening_takes_the_jobs_along(replica: Replica, model: ImageModel) -> None:
    async def listen() -> list[Message]:
        stream = replica.stream("page", {str(job.seed): job for job in refinements(model, 2)})
        said = [await anext(stream) for _ in range(5)]
        await stream.aclose()
        return said

    said = asyncio.run(listen())
    assert said[0] is None
    assert all(isinstance(each, tuple) for each in said[1:])
    last(replica._worker.submit(make_job(model)))
    assert replica._worker.made["refine"] < 100, "they ended before this one did"
    assert not replica._handles


def test_a_page_that_died_is_forgotten(
    replica: Replica, model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def listen() -> list[Message]:
        stream = replica.stream("page", {"1": make_job(model, kind="speculative", steps=10)})
        said = [await anext(stream)]
        replica.check_health()
        monkeypatch.setattr("app.backends.replica.SILENCE_S", 0)
        replica.hear("another page", [])
        replica.check_health()
        return said + [each async for each in stream]

    assert asyncio.run(listen())[-1] == ("1", Cancelled())


def test_refusals_are_said(replica: Replica, model: ImageModel) -> None:
    async def listen() -> list[Message]:
        return [said async for said in replica.stream("page", {"1": make_job(model, model="sdxl")})]

    (said,) = asyncio.run(listen())
    assert isinstance(said, RequestError)


def test_the_application_is_as_its_settings_say() -> None:
    (fixed,) = deployments(ReplicaSettings(fewest=2, most=2, gpus=1))
    assert fixed.num_replicas == 2
    assert fixed.ray_actor_options["num_gpus"] == 1
    (scaled,) = deployments(ReplicaSettings(fewest=1, most=4, requests=8))
    scaling = scaled._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 4, 8)


def deployments(settings: ReplicaSettings) -> list[Any]:
    return [application(settings)._bound_deployment]


# ---- the front without a cluster


class Script:
    """Replicas that do as they are told: one entry for each stream that is opened, see `play`."""

    def __init__(self, *streams: Callable[[dict[str, Job]], AsyncIterator[Message]]) -> None:
        self.streams = iter(streams)
        self.asked: list[list[Job]] = []
        self.actions: list[tuple[str, str]] = []
        self.stream = self

    def options(self, stream: bool, session_id: str) -> "Script":
        return self

    def remote(self, page: str, jobs: dict[str, Job]) -> Any:
        self.asked.append(list(jobs.values()))
        return Played(next(self.streams)(jobs))

    def broadcast(self, method: str, page: str, actions: list[tuple[str, str]]) -> Any:
        assert method == "hear"
        self.actions += actions

        async def results_async(**options: Any) -> list:
            return []

        return SimpleNamespace(results_async=results_async)


class Played:
    def __init__(self, said: AsyncIterator[Message]) -> None:
        self.said = said

    def __aiter__(self) -> AsyncIterator[Message]:
        return self.said

    def cancel(self) -> None:
        pass


def play(done: int, error: BaseException | None = None, accept: bool = True) -> Any:
    """A stream that accepts, finishes the first `done` jobs and then raises `error`, or waits for ever."""

    async def stream(jobs: dict[str, Job]) -> AsyncIterator[Message]:
        if accept:
            yield None
        for key in list(jobs)[:done]:
            yield key, finished(jobs[key])
        if error:
            raise error
        await asyncio.sleep(60)

    return stream


def finished(job: Job) -> Done:
    from PIL import Image

    return Done(Image.new("RGB", (1, 1)), Record(job, "revision", job.steps, 0.0))


def refuse(error: RequestError) -> Any:
    async def stream(jobs: dict[str, Job]) -> AsyncIterator[Message]:
        yield error

    return stream


@pytest.fixture
def scripted(model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes a front for scripted replicas."""
    monkeypatch.setattr(front, "PAUSES_S", (0.01, 0.01))
    made: list[Replicas] = []

    def make(*streams: Any) -> tuple[Replicas, Script]:
        script: Any = Script(*streams)
        made.append(Replicas(model.facts, script, lambda: None))
        return made[-1], script

    yield make
    for each in made:
        each.close()


DEATH = RayActorError()


def test_only_what_is_unfinished_is_made_again(scripted: Callable[..., Any], model: ImageModel) -> None:
    jobs = [make_job(model, seed=seed) for seed in range(3)]
    replicas, script = scripted(play(1, DEATH), play(1, asyncio.CancelledError()), play(1, DEATH))
    assert all(isinstance(last(handle), Done) for handle in replicas.submit_all(jobs))
    assert script.asked == [jobs, jobs[1:], jobs[2:]]
    assert replicas.healthy


def test_a_stream_that_ends_early_is_a_loss_too(scripted: Callable[..., Any], model: ImageModel) -> None:
    async def early(jobs: dict[str, Job]) -> AsyncIterator[Message]:
        yield None

    replicas, script = scripted(early, play(1))
    assert isinstance(last(replicas.submit(make_job(model))), Done)
    assert len(script.asked) == 2


def test_actions_outlive_a_replica(scripted: Callable[..., Any], model: ImageModel) -> None:
    async def dies(jobs: dict[str, Job]) -> AsyncIterator[Message]:
        yield None
        while len(script.actions) < 2:
            await asyncio.sleep(0.01)
        raise DEATH

    async def lives(jobs: dict[str, Job]) -> AsyncIterator[Message]:
        yield None
        while len(script.actions) < 3:
            await asyncio.sleep(0.01)
        for key in jobs:
            yield key, finished(jobs[key])

    jobs = [make_job(model, kind="speculative", seed=seed) for seed in range(3)]
    replicas, script = scripted(dies, lives)
    given_up, promoted, other = replicas.submit_all(jobs)
    given_up.cancel()
    promoted.promote()
    assert last(given_up) == Cancelled()
    assert isinstance(last(promoted), Done)
    assert isinstance(last(other), Done)
    assert script.asked == [jobs, jobs[1:]], "what was cancelled is not made again"
    assert [action for _, action in script.actions] == ["cancel", "promote", "promote"], (
        "and it is promoted again"
    )


def test_in_the_end_it_fails_in_words(scripted: Callable[..., Any], model: ImageModel) -> None:
    replicas, script = scripted(*[play(0, DEATH)] * 3)
    failed = last(replicas.submit(make_job(model)))
    assert isinstance(failed, Failed)
    assert "try again in a minute" in failed.message
    assert len(script.asked) == 3
    assert not replicas.healthy


def test_who_is_in_is_not_refused_by_the_next_replica(
    scripted: Callable[..., Any], model: ImageModel
) -> None:
    replicas, _ = scripted(play(0, DEATH), refuse(Busy("Too many people are waiting.")), play(1))
    assert isinstance(last(replicas.submit(make_job(model))), Done)


def test_refusals_come_at_once(
    scripted: Callable[..., Any], model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = play(0, BackPressureError(1, 1), accept=False)
    replicas, script = scripted(refuse(Busy("Too many.")), full, play(0, accept=False))
    with pytest.raises(Busy, match="Too many"):
        replicas.submit(make_job(model))
    with pytest.raises(Busy, match="Too many people are waiting"):
        replicas.submit(make_job(model))
    monkeypatch.setattr(front, "ACCEPT_S", 0.1)
    with pytest.raises(Busy, match="being restarted"):
        replicas.submit(make_job(model))
    assert len(script.asked) == 3


def test_closing_cancels_everything(scripted: Callable[..., Any], model: ImageModel) -> None:
    replicas, _ = scripted(play(0))
    handle = replicas.submit(make_job(model))
    replicas.close()
    assert last(handle) == Cancelled()
    handle.cancel()
    with pytest.raises(RequestError, match="shutting down"):
        replicas.submit(make_job(model))


# ---- starting


def test_a_replica_gets_as_many_cpus_as_fit() -> None:
    assert cpus_each([8], 1) == 8
    assert cpus_each([8], 3) == 2
    assert cpus_each([2, 6], 2) == 3, "two of four would not fit beside each other"
    assert cpus_each([2], 4) == 0.5
    with pytest.raises(ModelError, match="no CPUs"):
        cpus_each([], 1)


def test_what_is_wrong_is_said_in_words(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="Choose a shorter --data"):
        start(Choice(str(tiny_folder), "cpu"), tmp_path / ("long" * 20))
    with pytest.raises(ModelError, match="no Ray cluster to join"):
        start(Choice(str(tiny_folder), "cpu"), tmp_path, address=f"127.0.0.1:{free_port()}")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "app.backends.cluster")
    with pytest.raises(ModelError, match="pip install -r requirements-ray"):
        import_module("app.backends.cluster")

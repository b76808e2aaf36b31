import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from app.job import Cancelled, Done, Failed, Queued, RequestError, Step
from app.models import ImageModel
from app.worker import Handle, Worker, merge
from tests.app.conftest import make_job


class WatchedModel(ImageModel):
    """A model whose calls are noted, as the guidance of each of their rows, and can be held back or fail."""

    calls: list[list[float]]
    gate: threading.Event
    broken: bool

    def watch(self) -> "WatchedModel":
        self.__dict__.update(calls=[], gate=threading.Event(), broken=False)
        self.gate.set()
        return self

    def denoise(self, model_input, timesteps, prompts, negatives, guidance):
        assert self.gate.wait(20)
        self.calls.append(guidance.tolist())
        if self.broken:
            raise RuntimeError("the device is on fire")
        return super().denoise(model_input, timesteps, prompts, negatives, guidance)


@pytest.fixture
def watched(model: ImageModel) -> WatchedModel:
    return WatchedModel(**vars(model)).watch()


@pytest.fixture
def held(watched: WatchedModel) -> Iterator[Worker]:
    """A worker that makes its next call only once the gate is opened."""
    worker = Worker(watched)
    watched.calls.clear()
    watched.gate.clear()
    yield worker
    watched.gate.set()
    worker.close()


def last(handle: Handle) -> Any:
    return list(handle.events())[-1]


def pixels(done: Done) -> np.ndarray:
    return np.asarray(done.picture).astype(int)


def test_events_tell_the_whole_story(worker: Worker) -> None:
    job = make_job(worker.model, steps=5)
    events = list(worker.submit(job).events())
    assert isinstance(events[0], Queued)
    steps = [event for event in events if isinstance(event, Step)]
    assert [(s.step, s.steps) for s in steps] == [(i, 5) for i in range(1, 5)]
    done = events[-1]
    assert isinstance(done, Done)
    assert done.record.job == job
    assert done.record.evaluations == 5
    assert done.record.revision == worker.model.revision
    assert done.picture.size == (worker.model.size,) * 2


def test_events_can_be_heard_later_and_twice(worker: Worker) -> None:
    handle = worker.submit(make_job(worker.model))
    assert list(handle.events()) == list(handle.events())
    assert handle.ended


def test_a_seed_is_a_picture_whatever_the_company(worker: Worker) -> None:
    job = make_job(worker.model, seed=5, steps=6)
    alone = last(worker.submit(job))
    others = [
        make_job(worker.model, seed=i, steps=4 + i, guidance=1 + i, prompt="a lake at night", solver=solver)
        for i, solver in enumerate(("ddim", "dpm++2m", "unipc", "heun"))
    ]
    in_company = last(worker.submit_all([*others, job])[-1])
    assert np.abs(pixels(alone) - pixels(in_company)).max() <= 1
    assert (
        np.abs(pixels(alone) - pixels(last(worker.submit(make_job(worker.model, seed=6, steps=6))))).max() > 1
    )


def test_prompt_guidance_and_negative_prompt_matter(worker: Worker) -> None:
    model = worker.model
    jobs = [
        make_job(model),
        make_job(model, prompt="desert at night"),
        make_job(model, guidance=8),
        make_job(model, negative_prompt="lake"),
    ]
    pictures = [pixels(last(handle)) for handle in worker.submit_all(jobs)]
    for i, one in enumerate(pictures):
        assert all(np.abs(one - other).max() > 1 for other in pictures[i + 1 :])


def test_a_preview_overtakes_a_running_refinement(held: Worker, watched: WatchedModel) -> None:
    refinement = held.submit(make_job(watched, kind="refine", steps=10, guidance=2))
    time.sleep(0.05)  # the worker now waits at the gate with the refinement's first step
    preview = held.submit(make_job(watched, steps=4, guidance=3))
    watched.gate.set()
    assert isinstance(last(preview), Done)
    assert isinstance(last(refinement), Done)
    assert watched.calls == [[2]] + [[3]] * 4 + [[2]] * 9


def test_a_grid_advances_in_one_batch(held: Worker, watched: WatchedModel) -> None:
    handles = held.submit_all([make_job(watched, seed=i) for i in range(4)])
    watched.gate.set()
    assert all(isinstance(last(handle), Done) for handle in handles)
    assert watched.calls == [[3.0] * 4] * 4


def test_two_people_advance_together(held: Worker, watched: WatchedModel) -> None:
    many = held.submit_all([make_job(watched, seed=i, owner="a", guidance=2) for i in range(8)])
    few = held.submit_all([make_job(watched, seed=i, owner="b", guidance=3) for i in range(4)])
    time.sleep(0.05)
    watched.gate.set()
    order = [position for position, event in merge([*many, *few]) if isinstance(event, Done)]
    assert order.index(11) < order.index(7), "the few waited for the many"
    assert sorted(watched.calls[1]) == [2] * 4 + [3] * 4


def test_cancelling_takes_effect_at_the_next_step(held: Worker, watched: WatchedModel) -> None:
    handle = held.submit(make_job(watched, kind="refine", steps=50))
    time.sleep(0.05)
    handle.cancel()
    watched.gate.set()
    assert last(handle) == Cancelled()
    assert len(watched.calls) <= 1


def test_what_is_queued_can_be_cancelled(held: Worker, watched: WatchedModel) -> None:
    first = held.submit(make_job(watched, steps=4))
    waiting = held.submit(make_job(watched, kind="refine"))
    time.sleep(0.05)
    waiting.cancel()
    watched.gate.set()
    assert not any(isinstance(event, Step) for event in waiting.events())
    assert last(waiting) == Cancelled()
    assert isinstance(last(first), Done)


def test_all_jobs_of_an_owner_end_together(held: Worker, watched: WatchedModel) -> None:
    mine = held.submit_all([make_job(watched, owner="me", seed=i) for i in range(3)])
    other = held.submit(make_job(watched, owner="you"))
    held.cancel("me")
    watched.gate.set()
    assert [last(handle) for handle in mine] == [Cancelled()] * 3
    assert isinstance(last(other), Done)


def test_cancelling_what_has_ended_changes_nothing(worker: Worker) -> None:
    handle = worker.submit(make_job(worker.model))
    done = last(handle)
    handle.cancel()
    assert last(handle) is done


def test_speculation_waits_until_promoted(held: Worker, watched: WatchedModel) -> None:
    guess = held.submit(make_job(watched, kind="speculative", guidance=2))
    time.sleep(0.05)
    refinement = held.submit(make_job(watched, kind="refine", guidance=4))
    guess.promote()
    watched.gate.set()
    assert isinstance(last(guess), Done)
    assert isinstance(last(refinement), Done)
    assert sorted(watched.calls[1]) == [2, 4], "promoted, it advances beside the refinement"


def test_a_failing_step_fails_its_pictures_in_words_and_the_worker_goes_on(
    held: Worker, watched: WatchedModel, caplog: pytest.LogCaptureFixture
) -> None:
    handles = held.submit_all([make_job(watched, seed=i) for i in range(2)])
    later = held.submit(make_job(watched, kind="refine", steps=4))
    watched.__dict__["broken"] = True
    watched.gate.set()
    for handle in handles:
        failed = last(handle)
        assert isinstance(failed, Failed)
        assert "try again" in failed.message
        assert "fire" not in failed.message
    assert "on fire" in caplog.text, "whoever runs the app finds the reason in the log"
    last(later)
    watched.__dict__["broken"] = False
    assert isinstance(last(held.submit(make_job(watched))), Done)


def test_the_wait_is_told(held: Worker, watched: WatchedModel) -> None:
    handles = held.submit_all([make_job(watched, seed=i) for i in range(12)])
    queued: list[Any] = [next(iter(handle.events())) for handle in handles]
    watched.gate.set()
    assert [event.place for event in queued] == list(range(12))
    assert all(event.estimate_s > 0 for event in queued)


def test_refinement_is_shown_while_it_grows_but_not_at_every_step(model: ImageModel) -> None:
    class SlowModel(WatchedModel):
        def denoise(self, *args):
            time.sleep(0.01)
            return super().denoise(*args)

    worker = Worker(SlowModel(**vars(model)).watch())
    events = list(worker.submit(make_job(model, kind="refine", steps=40)).events())
    worker.close()
    shown = [event for event in events if isinstance(event, Step) and event.picture]
    assert 1 <= len(shown) <= 20


def test_prompts_that_are_too_long_are_refused_in_words(worker: Worker) -> None:
    with pytest.raises(RequestError, match=r"The prompt is too long: 30 .* reads 22"):
        worker.submit(make_job(worker.model, prompt="lake " * 30))
    with pytest.raises(RequestError, match="The negative prompt is too long"):
        worker.submit(make_job(worker.model, negative_prompt="lake " * 30))


def test_other_models_and_sizes_are_refused_in_words(worker: Worker) -> None:
    with pytest.raises(RequestError, match="no model sdxl"):
        worker.submit(make_job(worker.model, model="sdxl"))
    with pytest.raises(RequestError, match="512 pixels"):
        worker.submit(make_job(worker.model, size=512))


def test_a_closed_worker_ends_what_it_has_and_takes_nothing_more(watched: WatchedModel) -> None:
    worker = Worker(watched)
    handle = worker.submit(make_job(watched, kind="refine", steps=100))
    worker.close()
    assert last(handle) == Cancelled()
    with pytest.raises(RequestError, match="shutting down"):
        worker.submit(make_job(watched))


def test_guidance_of_one_asks_the_network_once(model: ImageModel) -> None:
    rows = []
    unet = model.unet
    hook = unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    x = torch.randn(3, *model.latent_shape)
    text = model.encode(["lake"] * 3)
    empty = model.encode([""] * 3)
    t = torch.tensor([900.0, 500.0, 20.0])
    mixed = model.denoise(x, t, text, empty, torch.tensor([1.0, 3.0, 1.0]))
    hook.remove()
    assert rows == [4]
    plain = unet(x, t, encoder_hidden_states=text, return_dict=False)[0]
    assert torch.allclose(mixed[[0, 2]], plain[[0, 2]], atol=1e-5)
    assert not torch.allclose(mixed[1], plain[1], atol=1e-5)

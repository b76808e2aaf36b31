import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from app.jobs.handle import Handle, merge
from app.jobs.job import Busy, Cancelled, Done, Failed, Queued, Record, RequestError, Step, Variation
from app.models import ImageModel
from app.worker import Worker
from app.worker.costs import Costs
from app.worker.decoder import Decoder, DecodeRequest
from app.worker.queue import MAX_OPEN_STEPS, SampleQueue
from app.worker.scheduling import SchedulingPolicy
from tests.conftest import InterceptedModel, make_job
from tools.load.starts import DEVICES, calibrated, noisy

# Of some device on which two grids fit into one call.
COSTS = Costs(rows=(1, 2, 4, 8, 16, 32), seconds=(0.06, 0.07, 0.1, 0.14, 0.23, 0.43), decode_s=0.1)


class WatchedModel(InterceptedModel):
    """A model whose calls are noted, as the guidance of each of their rows, and can be held back or fail."""

    calls: list[list[float]]
    gate: threading.Event
    entered: threading.Event
    broken: bool
    most: int

    def watch(self) -> "WatchedModel":
        self.__dict__.update(
            calls=[], gate=threading.Event(), entered=threading.Event(), broken=False, most=1000
        )
        self.gate.set()
        return self

    def denoise(
        self, model_input: Any, timesteps: Any, prompts: Any, negatives: Any, guidance: torch.Tensor
    ) -> Any:
        self.entered.set()
        assert self.gate.wait(20)
        self.calls.append(guidance.tolist())
        if len(guidance) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if self.broken:
            raise RuntimeError("the device is on fire")
        return super().denoise(model_input, timesteps, prompts, negatives, guidance)


@pytest.fixture
def watched(model: ImageModel) -> WatchedModel:
    return WatchedModel(**vars(model)).watch()


@pytest.fixture
def held(watched: WatchedModel) -> Iterator[Worker]:
    """A worker that makes its next call only once the gate is opened."""
    worker = Worker(watched, costs=COSTS)
    watched.gate.clear()
    watched.entered.clear()
    yield worker
    watched.gate.set()
    worker.close()


def last(handle: Handle) -> Any:
    return list(handle.events())[-1]


def loose_handle(model: ImageModel) -> Handle:
    """A handle that no worker has."""
    return Handle(Mock(), make_job(model))


def record_of(handle: Handle) -> Record:
    return Record(handle.job, "0" * 64, 6, 1.0)


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
    assert done.record.revision == worker.model.facts.revision
    assert done.picture.size == (worker.model.facts.width, worker.model.facts.height)


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
    assert watched.entered.wait(20)  # the worker waits at the gate with the refinement's first step
    preview = held.submit(make_job(watched, steps=4, guidance=3))
    watched.gate.set()
    assert isinstance(last(preview), Done)
    assert isinstance(last(refinement), Done)
    assert watched.calls == [[2]] + [[3]] * 4 + [[2]] * 9


def test_a_refinement_goes_along_where_it_is_hardly_in_the_way(held: Worker, watched: WatchedModel) -> None:
    refinement = held.submit(make_job(watched, kind="refine", steps=10, guidance=2))
    assert watched.entered.wait(20)
    previews = held.submit_all([make_job(watched, steps=4, seed=i, guidance=3) for i in range(4)])
    watched.gate.set()
    assert all(isinstance(last(handle), Done) for handle in [*previews, refinement])
    assert watched.calls == [[2]] + [[3, 3, 3, 3, 2]] * 4 + [[2]] * 5


def test_a_grid_advances_in_one_batch(held: Worker, watched: WatchedModel) -> None:
    handles = held.submit_all([make_job(watched, seed=i) for i in range(4)])
    watched.gate.set()
    assert all(isinstance(last(handle), Done) for handle in handles)
    assert watched.calls == [[3.0] * 4] * 4


def test_two_people_advance_together(held: Worker, watched: WatchedModel) -> None:
    many = [
        handle
        for grid in range(3)
        for handle in held.submit_all([make_job(watched, seed=i, owner="a", guidance=2) for i in range(4)])
    ]
    few = held.submit_all([make_job(watched, seed=i, owner="b", guidance=3) for i in range(4)])
    assert watched.entered.wait(20)
    watched.gate.set()
    order = [position for position, event in merge([*many, *few]) if isinstance(event, Done)]
    assert max(order.index(12 + i) for i in range(4)) < order.index(8), "the few waited for the many"
    assert sorted(watched.calls[1]) == [2] * 4 + [3] * 4


def test_cancelling_takes_effect_at_the_next_step(held: Worker, watched: WatchedModel) -> None:
    handle = held.submit(make_job(watched, kind="refine", steps=50))
    assert watched.entered.wait(20)
    handle.cancel()
    watched.gate.set()
    assert last(handle) == Cancelled()
    assert len(watched.calls) <= 1


def test_what_is_queued_can_be_cancelled(held: Worker, watched: WatchedModel) -> None:
    first = held.submit(make_job(watched, steps=4))
    assert watched.entered.wait(20)
    waiting = held.submit(make_job(watched, kind="refine"))
    waiting.cancel()
    watched.gate.set()
    assert not any(isinstance(event, Step) for event in waiting.events())
    assert last(waiting) == Cancelled()
    assert isinstance(last(first), Done)


def test_all_jobs_of_an_owner_end_together(held: Worker, watched: WatchedModel) -> None:
    mine = held.submit_all([make_job(watched, owner="me", seed=i) for i in range(3)])
    other = held.submit(make_job(watched, owner="you"))
    held.cancel_owner("me")
    watched.gate.set()
    assert [last(handle) for handle in mine] == [Cancelled()] * 3
    assert isinstance(last(other), Done)


def test_cancelling_what_has_ended_changes_nothing(worker: Worker) -> None:
    handle = worker.submit(make_job(worker.model))
    done = last(handle)
    handle.cancel()
    assert last(handle) is done


def test_the_steps_of_guesses_are_counted_and_those_given_up_as_wasted(
    held: Worker, watched: WatchedModel
) -> None:
    guesses = held.submit_all([make_job(watched, kind="speculative", steps=10, seed=i) for i in range(3)])
    watched.gate.set()
    while held.made["speculative"] < 24:  # three to 80 % of ten steps
        time.sleep(0.01)
    guesses[0].promote()
    assert isinstance(last(guesses[0]), Done)
    for guess in guesses[1:]:
        guess.cancel()
        assert last(guess) == Cancelled()
    assert held.made == {"speculative": 24, "refine": 2, "wasted": 16}


def test_a_favoured_guess_is_made_to_the_end(held: Worker, watched: WatchedModel) -> None:
    guesses = held.submit_all([make_job(watched, kind="speculative", steps=10, seed=i) for i in range(3)])
    guesses[1].favour()
    watched.gate.set()
    assert isinstance(last(guesses[1]), Done)
    assert not guesses[0].ended and not guesses[2].ended


def test_nobody_watches_a_guess_so_no_sketch_is_made(model: ImageModel) -> None:
    worker = Worker(model, costs=replace(COSTS, decode_s=0.0))
    guess = worker.submit(make_job(model, kind="speculative", steps=5))
    guess.favour()
    assert not any(isinstance(event, Step) and event.picture for event in guess.events())
    watched = worker.submit(make_job(model, kind="refine", steps=5))
    assert any(isinstance(event, Step) and event.picture for event in list(watched.events()))
    worker.close()


def test_speculation_waits_until_promoted(held: Worker, watched: WatchedModel) -> None:
    guess = held.submit(make_job(watched, kind="speculative", guidance=2))
    assert watched.entered.wait(20)
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


def test_memory_that_runs_out_is_not_noticed(
    held: Worker, watched: WatchedModel, caplog: pytest.LogCaptureFixture
) -> None:
    alone = [last(held_alone) for held_alone in _one_by_one(watched)]
    watched.__dict__["most"] = 2
    handles = held.submit_all([make_job(watched, seed=i) for i in range(5)])
    watched.gate.set()
    together = [last(handle) for handle in handles]
    assert all(isinstance(event, Done) for event in together)
    for one, other in zip(alone, together, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
    sizes = [len(call) for call in watched.calls]
    assert sizes[-1] <= 2 < max(sizes)
    assert sizes.count(5) == 1, "after the first time, batches are small at once"
    assert "Memory ran out" in caplog.text


def _one_by_one(watched: WatchedModel) -> list[Handle]:
    watched.gate.set()
    worker = Worker(watched, costs=COSTS)
    handles = [worker.submit(make_job(watched, seed=i)) for i in range(5)]
    for handle in handles:
        list(handle.events())
    worker.close()
    watched.calls.clear()
    watched.gate.clear()
    return handles


def test_a_picture_that_does_not_fit_at_all_fails_in_words(held: Worker, watched: WatchedModel) -> None:
    watched.__dict__["most"] = 0
    handle = held.submit(make_job(watched))
    watched.gate.set()
    failed = last(handle)
    assert isinstance(failed, Failed)
    assert "not enough memory" in failed.message


def test_the_worker_survives_an_error_outside_of_any_step(
    held: Worker, watched: WatchedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = held.submit(make_job(watched, kind="refine", steps=30))
    assert watched.entered.wait(20)

    def stumble(*args: object, **options: object) -> list:
        monkeypatch.undo()
        raise RuntimeError("a bug")

    monkeypatch.setattr(SchedulingPolicy, "choose", stumble)
    later = held.submit(make_job(watched))
    watched.gate.set()
    assert isinstance(last(begun), Failed)
    assert isinstance(last(later), Done), "what had not begun is none the worse"


def test_a_broken_device_is_told(held: Worker, watched: WatchedModel) -> None:
    watched.__dict__["broken"] = True
    watched.gate.set()
    for seed in range(3):
        assert held.healthy
        last(held.submit(make_job(watched, seed=seed)))
    assert not held.healthy


def test_too_many_are_refused_at_once_and_nobody_else_is_harmed(watched: WatchedModel) -> None:
    worker = Worker(watched, costs=COSTS, longest_wait_s={"preview": 5, "refine": 20})
    watched.gate.clear()
    accepted: list[Handle] = []
    with pytest.raises(Busy, match=r"Too many people are waiting: this could not begin before \d+ s"):
        for grid in range(100):
            jobs = [make_job(watched, seed=i, owner=str(grid)) for i in range(4)]
            accepted += worker.submit_all(jobs)
    assert 4 <= len(accepted) <= 100
    watched.gate.set()
    assert all(isinstance(last(handle), Done) for handle in accepted)
    assert isinstance(last(worker.submit(make_job(watched))), Done)
    worker.close()


@pytest.mark.parametrize("factor, rows", [(3.0, 4), (3.0, 16), (1 / 3, 8), (1 / 3, 1)])
def test_a_wrong_calibration_is_forgotten_within_a_minute(
    model: ImageModel, monkeypatch: pytest.MonkeyPatch, factor: float, rows: int
) -> None:
    call_s, now = noisy(DEVICES["two grids"], rows), 0.0

    class Timed(WatchedModel):
        def denoise(self, model_input: Any, *args: Any) -> Any:
            nonlocal now
            now += call_s(2 * len(model_input))
            return torch.zeros_like(model_input)

    clock = SimpleNamespace(perf_counter=lambda: now, monotonic=time.monotonic)
    monkeypatch.setattr("app.worker.loop.time", clock)
    first = replace(calibrated(DEVICES["two grids"], factor, rows), decode_s=1e9)  # no sketches
    worker = Worker(Timed(**vars(model)).watch(), costs=first, longest_wait_s={})
    grids = [
        worker.submit_all([make_job(model, seed=i, steps=20, owner=str(grid)) for i in range(4)])
        for grid in range(40)
    ]
    while now < 60 and not all(handle.ended for grid in grids for handle in grid):
        time.sleep(0.01)
    worker.close()
    assert 20 < now < 65, "the test had too little to do, or its clock stood still"
    assert worker.costs.knee in (16, 32)
    assert worker.costs.tick(16) == pytest.approx(DEVICES["two grids"].tick(16), rel=0.2)


def test_an_abandoned_huge_request_delays_nobody(held: Worker, watched: WatchedModel) -> None:
    held.submit_all([make_job(watched, owner="gone", seed=i, steps=100, guidance=2) for i in range(8)])
    assert watched.entered.wait(20)
    grid = held.submit_all([make_job(watched, owner="here", seed=i, steps=6, guidance=3) for i in range(4)])
    watched.gate.set()
    assert all(isinstance(last(handle), Done) for handle in grid)
    assert [call.count(3) for call in watched.calls[:7]] == [0, *[4] * 6], (
        "it waited for the tick under way only"
    )


def test_nobody_can_wait_for_more_than_a_bounded_number_of_steps(held: Worker, watched: WatchedModel) -> None:
    huge = [make_job(watched, kind="refine", owner="me", seed=i, steps=100) for i in range(8)]
    held.submit_all([*huge, *huge, *huge])  # a first request is never too large
    with pytest.raises(Busy, match=f"still need 2400 steps.*more than {MAX_OPEN_STEPS}.*cancel them"):
        held.submit(make_job(watched, owner="me"))
    held.submit(make_job(watched, owner="me", kind="speculative"))
    other = held.submit(make_job(watched, owner="you"))
    held.cancel_owner("me")
    watched.gate.set()
    assert isinstance(last(other), Done)
    assert isinstance(last(held.submit(make_job(watched, owner="me"))), Done)


def test_on_a_cpu_the_memory_of_past_ticks_is_released_now_and_then(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[int] = []
    monkeypatch.setattr("app.worker.loop.release_free_memory", lambda: released.append(worker.ticks))
    assert isinstance(last(worker.submit(make_job(worker.model))), Done)
    assert not released, "half a minute has not passed"
    monkeypatch.setattr("app.worker.loop.RELEASE_EVERY_S", 0.0)
    for seed in (1, 2):  # what the first one's last tick releases may come after its end
        assert isinstance(last(worker.submit(make_job(worker.model, seed=seed, steps=4))), Done)
    assert len(released) >= 4


def test_larger_pictures_count_as_more_rows(model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    monkeypatch.setattr(SampleQueue, "add", lambda self, samples: rows.extend(s.rows for s in samples))
    facts = replace(model.facts, smallest=16, largest=256)
    worker = Worker(replace(model, facts=facts), costs=COSTS)
    assert (facts.width, facts.height) == (64, 64)
    sizes: list[dict[str, Any]] = [
        {},
        {"guidance": 1},
        {"width": 128},
        {"width": 128, "height": 128},
        {"height": 16},
    ]
    worker.submit_all([make_job(model, **size) for size in sizes])
    worker.close()
    assert rows == [2, 1, 4, 8, 1]


def test_batched_latents_equal_single_ones(model: ImageModel) -> None:
    latents: dict[int, list[torch.Tensor]] = {}

    class Noting(WatchedModel):
        def pictures(self, x: Any, *, preview: Any = False) -> Any:
            for one in x:
                latents.setdefault(len(latents), []).append(one)
            return super().pictures(x, preview=preview)

    noting = Noting(**vars(model)).watch()
    worker = Worker(noting, costs=replace(COSTS, decode_s=1e9))  # no sketches
    job = make_job(noting, steps=6, guidance=4)
    last(worker.submit(job))
    others = [
        make_job(noting, seed=i, steps=7, solver="unipc", prompt="a lake at night") for i in range(2, 7)
    ]
    for handle in worker.submit_all([job, *others]):
        last(handle)
    worker.close()
    (alone,), (together,) = latents[0], latents[1]
    assert torch.linalg.norm(together - alone) < 1e-4 * torch.linalg.norm(alone)


def test_prompts_that_begin_together_are_encoded_in_one_call(held: Worker, watched: WatchedModel) -> None:
    calls = []
    hook = watched.diffusion.parts["text_encoder"].register_forward_pre_hook(
        lambda module, args: calls.append(len(args[0]))
    )
    prompts = ["a lake", "snowy hills", "a lake", "night over the sea"]
    watched.remembered.clear()
    handles = [held.submit(make_job(watched, prompt=prompt, steps=2)) for prompt in prompts]
    watched.gate.set()
    assert all(isinstance(last(handle), Done) for handle in handles)
    hook.remove()
    assert sum(calls) == 4, "three prompts and the empty one, each once"
    assert len(calls) <= 3, "the first may have begun alone, with the empty one"


def test_decoding_beside_the_steps_keeps_the_order(model: ImageModel) -> None:
    decoder = Decoder(model, beside=True)
    handle = loose_handle(model)
    latents = torch.zeros(model.diffusion.latent_shape)
    decoder.submit([DecodeRequest(handle, Step(1, 3, 0.0), latents), DecodeRequest(handle, Step(2, 3, 0.0))])
    decoder.submit([DecodeRequest(handle, record_of(handle), latents)])
    decoder.submit([])
    decoder.close()
    sketch, step, done = handle.events()
    assert isinstance(sketch, Step) and (sketch.step, bool(sketch.picture)) == (1, True)
    assert step == Step(2, 3, 0.0)
    assert isinstance(done, Done)


def test_decoding_that_fails_fails_its_pictures_alone(model: ImageModel) -> None:
    class Blind(WatchedModel):
        def pictures(self, x: Any, *, preview: bool = False) -> Any:
            raise RuntimeError("no colours")

    latents = torch.zeros(model.diffusion.latent_shape)
    final, sketched, plain = (loose_handle(model) for _ in range(3))
    Decoder(Blind(**vars(model)).watch()).submit(
        [
            DecodeRequest(final, record_of(final), latents),
            DecodeRequest(sketched, Step(1, 3, 0.0), latents),
            DecodeRequest(plain, Step(2, 3, 0.0)),
        ]
    )
    assert isinstance(last(final), Failed)
    heard: SimpleQueue[Any] = SimpleQueue()
    sketched.listen(heard)
    plain.listen(heard)
    assert [heard.get()[1] for _ in range(2)] == [Step(1, 3, 0.0), Step(2, 3, 0.0)], "without a picture"


def test_the_wait_is_told(held: Worker, watched: WatchedModel) -> None:
    handles = held.submit_all([make_job(watched, seed=i) for i in range(12)])
    queued: list[Any] = [next(iter(handle.events())) for handle in handles]
    watched.gate.set()
    assert [event.place for event in queued] == list(range(12))
    assert all(event.estimate_s > 0 for event in queued)


def test_refinement_is_shown_while_it_grows_but_not_at_every_step(model: ImageModel) -> None:
    class SlowModel(WatchedModel):
        def denoise(self, *args: Any) -> Any:
            time.sleep(0.01)
            return super().denoise(*args)

    worker = Worker(SlowModel(**vars(model)).watch(), costs=replace(COSTS, decode_s=0.01))
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
    with pytest.raises(RequestError, match="The model sdxl is not running here"):
        worker.submit(make_job(worker.model, model="sdxl"))
    with pytest.raises(RequestError, match="makes pictures of 64 × 64 pixels, not 512 × 64"):
        worker.submit(make_job(worker.model, width=512))


def test_a_variation_of_nothing_is_the_picture_and_a_whole_one_the_other(worker: Worker) -> None:
    variations = [None, *(Variation(9, amount) for amount in (0, 0.1, 0.5, 1))]
    jobs = [make_job(worker.model, seed=5, variation=variation) for variation in variations]
    jobs.append(make_job(worker.model, seed=9))
    jobs.append(make_job(worker.model, seed=5, variation=Variation(9, 0.5, Variation(7, 0.5))))
    own, nothing, little, half, whole, other, twice = (pixels(last(h)) for h in worker.submit_all(jobs))
    assert np.abs(own - nothing).max() <= 1 and np.abs(whole - other).max() <= 1
    assert min(np.abs(twice - each).mean() for each in (own, half, other)) > 1
    assert 1 < np.abs(own - little).mean() < np.abs(own - half).mean() < np.abs(own - other).mean()


def test_a_closed_worker_ends_what_it_has_and_takes_nothing_more(watched: WatchedModel) -> None:
    worker = Worker(watched)
    handle = worker.submit(make_job(watched, kind="refine", steps=100))
    worker.close()
    assert last(handle) == Cancelled()
    with pytest.raises(RequestError, match="shutting down"):
        worker.submit(make_job(watched))


def test_guidance_of_one_asks_the_network_once(model: ImageModel) -> None:
    rows = []
    unet = model.diffusion.network
    hook = unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    x = torch.randn(3, *model.diffusion.latent_shape)
    text = model.diffusion.encode(["lake"] * 3)
    empty = model.diffusion.encode([""] * 3)
    t = torch.tensor([900.0, 500.0, 20.0])
    mixed = model.diffusion.denoise(x, t, text, empty, torch.tensor([1.0, 3.0, 1.0]))
    hook.remove()
    assert rows == [4]
    plain = unet(x, t, encoder_hidden_states=text.tensors["text"], return_dict=False)[0]
    assert torch.allclose(mixed[[0, 2]], plain[[0, 2]], atol=1e-5)
    assert not torch.allclose(mixed[1], plain[1], atol=1e-5)

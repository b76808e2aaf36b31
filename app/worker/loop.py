"""The worker: one thread that makes pictures step by step for everybody at once.

Each tick takes the pictures that `app.worker.scheduling.choose` names, calls the denoiser once for all of them, each
with its own timestep and guidance, and moves each along its own plan. A picture depends on its seed and
settings alone, never on its company. The page, the programs' API and everything else ask for pictures
through `Worker.submit` and listen to the handle it gives.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from app.jobs.handle import Handle
from app.jobs.job import (
    Busy,
    Cancelled,
    Done,
    Event,
    Failed,
    Job,
    Kind,
    Queued,
    Record,
    RequestError,
    Started,
    Step,
)
from app.models import ImageModel, ModelFacts
from app.models.memory import is_out_of_memory, split_on_oom
from app.models.safety import HELD_BACK
from app.worker.costs import Costs, measure_costs
from app.worker.outbox import Letter, Outbox
from app.worker.scheduling import POLICIES, Forecast, SchedulingPolicy, Ticket, choose, forecast
from solver import Plan, SampleState, make_plan, noise_for_seed
from solver.diffusion import Conditions
from solver.sampling import spherical_interpolation

log = logging.getLogger(__name__)

# Intermediate pictures may cost this share of the time that their steps take.
PICTURE_SHARE = 0.1
# How fast measured times forget: the weight of the newest.
FORGETTING = 0.1
# Whoever would have to wait longer is refused at once.
LONGEST_WAIT_S: Mapping[Kind, float] = {"preview": 30, "refine": 180}
# Pictures in the making and in line, whatever their kind.
MAX_PICTURES = 1000
# After memory ran out, batches grow again after so many ticks.
CAREFUL_TICKS = 200
# So many failing ticks in a row, and the device itself must be broken.
UNHEALTHY_FAILURES = 3


@dataclass(eq=False)
class _Sample:
    """One picture in the making. `state` is None until its first tick; `seconds` is what its ticks took, and
    `stepped` when the last was."""

    number: int
    request: int
    handle: Handle
    kind: Kind
    plan: Plan
    rows: int  # of its denoiser calls
    reference: bool  # whether the network is shown a picture to be edited, which the others then must be, too
    state: SampleState | None = None
    cancelled: bool = False
    favoured: bool = False
    guessed_steps: int = 0
    place: int | None = None
    seconds: float = 0.0
    arrived: float = field(default_factory=time.monotonic)
    stepped: float = field(default_factory=time.monotonic)
    unspent_s: float = 0.0  # what intermediate pictures may still cost
    prompts: Conditions = field(default_factory=lambda: Conditions({}))
    negatives: Conditions = field(default_factory=lambda: Conditions({}))

    @property
    def steps_done(self) -> int:
        return self.state.index if self.state else 0

    def ticket(self) -> Ticket:
        job, now = self.handle.job, time.monotonic()
        return Ticket(
            number=self.number,
            request=self.request,
            kind=self.kind,
            owner=job.owner,
            steps=self.plan.nfe,
            steps_left=self.plan.nfe - self.steps_done,
            rows=self.rows,
            shape=(job.model, job.width, job.height, self.reference),
            favoured=self.favoured,
            idle_s=now - self.stepped,
            age_s=now - self.arrived,
        )


class Worker:
    """Makes pictures with one model in one thread of this process.

    model: what to run. policy: who goes first. costs: what ticks cost on this device, measured when not
    given. longest_wait_s: by kind of job, the wait beyond which it is refused.

    ticks: denoiser calls so far. pace: how long they take of late, against `costs`. made: steps by the kind
    that their pictures had then, and under "wasted" those of guesses that were given up. healthy: False once
    nothing works any more. on_tick: told of each call: the seconds that it took, and its pictures.
    """

    def __init__(
        self,
        model: ImageModel,
        policy: SchedulingPolicy = POLICIES["speculative"],
        costs: Costs | None = None,
        longest_wait_s: Mapping[Kind, float] = LONGEST_WAIT_S,
    ) -> None:
        self.model = model
        self.policy = policy
        self.costs = costs or self._calibrate()
        self.ticks = 0
        self.made: Counter[str] = Counter()
        self.healthy = True
        self.on_tick: Callable[[float, int], None] = lambda seconds, pictures: None
        self._longest_wait_s = longest_wait_s
        self.pace = 1.0
        self._decode_s = self.costs.decode_s
        self._most_rows: int | None = None
        self._samples: dict[Handle, _Sample] = {}
        self._running: frozenset[int] = frozenset()
        self._pictures = self._requests = self._failures = 0
        self._closed = False
        self._changed = threading.Condition()
        self._outbox = Outbox(model, checker=model.safety)
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    @property
    def speculates(self) -> bool:
        """Whether the page is to have likely picks refined ahead."""
        return self.policy.speculate

    @property
    def facts(self) -> ModelFacts:
        """What there is to know of the model."""
        return self.model.facts

    def submit(self, job: Job) -> Handle:
        """Queue a job and return at once; its handle tells the rest.

        Raises RequestError, in words, when the model can't do it (see `ModelFacts.plan`), and Busy where it
        would have to wait for too long.
        """
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """Queue several jobs that start together, such as a grid; all or none are accepted, see `submit`."""
        plans = [self.facts.plan(job) for job in jobs]
        handles = [Handle(self, job) for job in jobs]
        with self._changed:
            if self._closed:
                raise RequestError("The app is shutting down.")
            self._requests += 1
            for handle, plan in zip(handles, plans, strict=True):
                self._pictures += 1
                job, rows = handle.job, self.facts.rows(handle.job.guidance)
                reference = self.facts.edits and self.facts.sees_start(job)
                self._samples[handle] = _Sample(
                    self._pictures, self._requests, handle, job.kind, plan, rows, reference
                )
            try:
                self._admit(handles)
            except Busy:
                for handle in handles:
                    del self._samples[handle]
                raise
            self._tell_places()
            self._changed.notify_all()
        return handles

    def cancel_owner(self, owner: str) -> None:
        """Cancel all jobs of an owner, running or waiting."""
        with self._changed:
            for sample in self._samples.values():
                sample.cancelled |= sample.handle.job.owner == owner
            self._changed.notify_all()

    def close(self) -> None:
        """Cancel everything and end the thread after the step it is in."""
        with self._changed:
            self._closed = True
            for sample in self._samples.values():
                sample.cancelled = True
            self._changed.notify_all()
        self._thread.join()
        self._outbox.close()

    def cancel(self, handle: Handle) -> None:
        """Give a job up at the next tick. Does nothing for one that has ended, as all of these."""
        self._change(handle, cancelled=True)

    def promote(self, handle: Handle) -> None:
        """Turn a speculative job into a refinement."""
        if handle.job.kind == "speculative":
            self._change(handle, kind="refine")

    def favour(self, handle: Handle) -> None:
        """Serve a speculative job before the others of its kind, and to the end."""
        self._change(handle, favoured=True)

    def _change(self, handle: Handle, **values: Any) -> None:
        with self._changed:
            if sample := self._samples.get(handle):
                vars(sample).update(values)
                self._changed.notify_all()

    def _admit(self, handles: Sequence[Handle]) -> None:
        """Raise Busy where these, already among the samples, would wait for too long."""
        if len(self._samples) > MAX_PICTURES:
            waiting = len(self._samples) - len(handles)
            raise Busy(f"{waiting} pictures are in line. Please try again in a minute.")
        expected = self._forecast()
        for handle in handles:
            sample = self._samples[handle]
            wait_s = expected[sample.number].wait_s
            if wait_s > self._longest_wait_s.get(sample.kind, float("inf")):
                raise Busy(
                    f"Too many people are waiting: this could not begin before {wait_s:.0f} s have passed. "
                    "Please try again in a minute."
                )

    def _forecast(self) -> dict[int, Forecast]:
        tickets = [sample.ticket() for sample in self._samples.values()]
        return forecast(tickets, self.policy, self.costs, self.pace)

    def _tell_places(self) -> None:
        """Tell those that have not begun where they stand, whenever that has changed."""
        expected = self._forecast()
        for sample in self._samples.values():
            told = expected[sample.number]
            if sample.state is None and sample.place != told.place:
                sample.place = told.place
                sample.handle.tell(Queued(told.place, told.seconds))

    # ---- from here on, all in the worker's own thread

    def _run(self) -> None:
        while True:
            try:
                return self._serve()
            except Exception:
                log.exception("The worker stumbled; what it was making is given up, and it goes on")
                with self._changed:
                    self._end([sample for sample in self._samples.values() if sample.state], _FAILED)

    def _serve(self) -> None:
        """Tick for as long as the worker is open."""
        while batch := self._next_batch():
            try:
                self._tick(batch)
                self._failures, self.healthy = 0, True
            except Exception as error:
                log.exception("A step failed; its %d pictures are given up", len(batch))
                self._failures += 1
                self.healthy = self._failures < UNHEALTHY_FAILURES
                self._end(batch, _TOO_LARGE if is_out_of_memory(error) else _FAILED)

    def _next_batch(self) -> list[_Sample]:
        """Wait until there is something to do; nothing when the worker is closed."""
        with self._changed:
            while True:
                self._end([s for s in self._samples.values() if s.cancelled], Cancelled())
                by_number = {sample.number: sample for sample in self._samples.values()}
                tickets = [sample.ticket() for sample in by_number.values()]
                chosen = choose(tickets, self.policy, self.costs, self._running, self._most_rows, self.pace)
                self._running = frozenset(t.number for t in chosen)
                if chosen or self._closed:
                    return [by_number[t.number] for t in chosen]
                self._changed.wait()

    def _end(self, samples: Sequence[_Sample], event: Event | None) -> None:
        """Forget the samples, and say why where they end early."""
        if not samples:
            return
        with self._changed:
            for sample in samples:
                self._samples.pop(sample.handle, None)
                if event:
                    self.made["wasted"] += sample.guessed_steps
            self._tell_places()
        for sample in samples:
            if event:
                sample.handle.tell(event)

    @torch.inference_mode()
    def _tick(self, batch: Sequence[_Sample]) -> None:
        """One denoiser call for the batch; each sample takes one step, and those at the end are finished."""
        began = time.perf_counter()
        new = [sample for sample in batch if sample.state is None]
        self._start(new)
        together = Counter(sample.request for sample in new)
        for sample in new:
            sample.handle.tell(Started(together[sample.request]))
        outputs = self._denoise(batch)
        sketched = self._sketches(batch, outputs)
        for sample, output in zip(batch, outputs, strict=True):
            _state(sample).step(output)
            self.made[sample.kind] += 1
            sample.guessed_steps += sample.kind == "speculative"
        seconds = time.perf_counter() - began
        self.ticks += 1
        self.on_tick(seconds, len(batch))
        rows = sum(sample.ticket().rows for sample in batch)
        self.pace += FORGETTING * (seconds / self.costs.tick(rows) - self.pace)
        for sample, sketch in zip(batch, sketched, strict=True):
            sample.seconds += seconds
            sample.stepped = time.monotonic()
            sample.unspent_s = PICTURE_SHARE * seconds / len(batch) + (
                0.0 if sketch is not None else sample.unspent_s
            )
        finished = [sample for sample in batch if _state(sample).done]
        letters = self._letters(batch, sketched)
        self._end(finished, None)
        self._outbox.post(letters)

    def _start(self, samples: Sequence[_Sample]) -> None:
        """Encode the prompts of all in one call, and the pictures to start from; and draw their noise."""
        if not samples:
            return
        jobs = [sample.handle.job for sample in samples]
        prompts = self._encode([job.prompt for job in jobs])
        negatives = prompts
        if self.facts.negative_prompts:
            negatives = self._encode([job.negative_prompt for job in jobs], negative=True)
        files = [job.start.picture if job.start and self.facts.sees_start(job) else None for job in jobs]
        starts = self.model.encode_starts(files, jobs[0].width, jobs[0].height)  # a batch has one size
        for i, (sample, job, clean) in enumerate(zip(samples, jobs, starts, strict=True)):
            sample.prompts, sample.negatives = prompts[i], negatives[i]
            if sample.reference and clean is not None:
                sample.prompts = sample.prompts.with_reference(clean[None])
                sample.negatives = sample.negatives.with_reference(clean[None])
                clean = None
            sample.state = SampleState.start(sample.plan, self._noise(job), clean)

    def _encode(self, texts: Sequence[str], negative: bool = False) -> list[Conditions]:
        return split_on_oom(lambda part: self.model.encode_each(part, negative=negative), texts)

    def _noise(self, job: Job) -> torch.Tensor:
        shape = self.model.shape_of(job.width, job.height)
        noise = noise_for_seed(job.seed, shape)
        if job.variation:
            other = noise_for_seed(job.variation.seed, shape)
            noise = spherical_interpolation(noise, other, job.variation.amount)
        return noise.to(self.model.device)

    def _denoise(self, batch: Sequence[_Sample]) -> list[torch.Tensor]:
        """The guided output for each; in several calls, and smaller batches next, where memory is short."""
        fitting = len(batch)

        def call(part: Sequence[_Sample]) -> list[torch.Tensor]:
            nonlocal fitting
            outputs = self.model.denoise(
                torch.stack([_state(sample).model_input() for sample in part]),
                torch.tensor([_state(sample).timestep for sample in part]),
                Conditions.cat([sample.prompts for sample in part]),
                Conditions.cat([sample.negatives for sample in part]),
                torch.tensor([sample.handle.job.guidance for sample in part]),
            )
            self._wait_for_device()
            fitting = min(fitting, len(part))
            return list(outputs)

        outputs = split_on_oom(call, batch)
        if fitting < len(batch):
            self._most_rows = 2 * fitting
            log.warning("Memory ran out at %d pictures; going on with %d at a time", len(batch), fitting)
        elif self._most_rows and self.ticks % CAREFUL_TICKS == 0:
            self._most_rows = 2 * self._most_rows if self._most_rows < self.costs.knee else None
        return outputs

    def _wait_for_device(self) -> None:
        if self.model.device.type != "cpu":
            # Without this the loop would run ahead of the device: no true times, no prompt cancelling.
            torch.accelerator.current_stream(self.model.device).synchronize()

    def _sketches(
        self, batch: Sequence[_Sample], outputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """What is expected of the latents, to be shown now and then, as long as nobody else waits."""
        with self._changed:
            watched = sum(sample.kind != "speculative" for sample in self._samples.values())
        if watched > len(batch) or batch[0].kind == "speculative":
            return [None] * len(batch)
        return [
            _state(sample).x0(output) if sample.unspent_s >= self._decode_s else None
            for sample, output in zip(batch, outputs, strict=True)
        ]

    def _letters(self, batch: Sequence[_Sample], sketched: Sequence[torch.Tensor | None]) -> list[Letter]:
        expected = self._forecast()
        letters = []
        for sample, sketch in zip(batch, sketched, strict=True):
            if _state(sample).done:
                letters.append(self._last_letter(sample))
            else:
                step = Step(sample.steps_done, sample.plan.nfe, expected[sample.number].seconds)
                letters.append(self._step_letter(sample.handle, step, sketch))
        return letters

    def _step_letter(self, handle: Handle, step: Step, sketch: torch.Tensor | None) -> Letter:
        def tell(picture: Image.Image | None, decode_s: float) -> None:
            if picture:
                self._decode_s += FORGETTING * (decode_s - self._decode_s)
            handle.tell(replace(step, picture=picture))

        return Letter(sketch, tell, lambda: handle.tell(step), preview=bool(self.facts.preview_decoder))

    def _last_letter(self, sample: _Sample) -> Letter:
        handle, made_s, nfe = sample.handle, sample.seconds, sample.plan.nfe
        decoder = self.facts.decoder_of(handle.job)

        def tell(picture: Image.Image | None, decode_s: float) -> None:
            assert picture
            record = Record(handle.job, self.facts.revision, nfe, made_s + decode_s, decoder)
            handle.tell(Done(picture, record))

        return Letter(
            _state(sample).x,
            tell,
            lambda: handle.tell(_FAILED),
            lambda: handle.tell(HELD_BACK),
            preview=bool(decoder),
        )

    @torch.inference_mode()
    def _calibrate(self) -> Costs:
        """Take the first calls' extra cost before anybody waits, and measure what ticks cost here."""
        model = self.model
        plan = make_plan("consistency", 6, model.schedule, learned=model.facts.learned)
        state = SampleState.start(plan, noise_for_seed(0, model.latent_shape).to(model.device))
        prompt = model.encode([""])

        def call(rows: int) -> None:
            x, text = torch.stack([state.model_input()] * rows), Conditions.cat([prompt] * rows)
            model.denoise(x, torch.full((rows,), state.timestep), text, text, torch.ones(rows))
            self._wait_for_device()

        def encode() -> None:
            model.remembered.clear()
            model.encode([""])
            self._wait_for_device()

        model.pictures(state.x[None])
        return measure_costs(call, lambda: model.pictures(state.x[None], preview=True), encode)


_FAILED = Failed("Something went wrong while making this picture. Please try again.")
_TOO_LARGE = Failed("There is not enough memory for this picture just now. Please try again in a minute.")


def _state(sample: _Sample) -> SampleState:
    assert sample.state
    return sample.state

"""The worker: one thread that makes pictures step by step for everybody at once.

Each tick takes the most urgent unfinished pictures of one shape, calls the denoiser once for all of them,
each with its own timestep and guidance, and moves each along its own plan. A picture depends on its seed
and settings alone, never on its company. The page, the programs' API and everything else ask for pictures
through `Worker.submit` and listen to the handle it gives.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch
from PIL import Image

from app.job import LAST_EVENTS, Cancelled, Done, Event, Failed, Job, Kind, Queued, Record, RequestError, Step
from app.models import ImageModel
from app.scheduling import Ticket, choose, line_up, rows_until_done
from solver import Plan, SampleState, make_plan, noise_for_seed

log = logging.getLogger(__name__)

# Intermediate pictures may cost this share of the time that their steps take.
PICTURE_SHARE = 0.1
# How fast the measured times forget: the weight of the newest measurement.
FORGETTING = 0.2


class Handle:
    """A submitted job: listen to it, cancel it, promote it. Safe to use from any thread."""

    def __init__(self, worker: "Worker", job: Job) -> None:
        self.job = job
        self._worker = worker
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._listeners: list[SimpleQueue[tuple[Handle, Event]]] = []
        self.cancelled = False

    def events(self) -> Iterator[Event]:
        """All events from the first to the last (Done, Failed or Cancelled), waiting for each."""
        for _, event in merge([self]):
            yield event

    @property
    def ended(self) -> bool:
        """Whether the last event has come."""
        with self._lock:
            return bool(self._events) and isinstance(self._events[-1], LAST_EVENTS)

    def cancel(self) -> None:
        """Give up; takes effect at the next step. Does nothing once the job has ended."""
        self.cancelled = True
        self._worker.wake()

    def promote(self) -> None:
        """Turn a speculative refinement into one that somebody waits for."""
        self._worker.promote(self)

    def listen(self, inbox: "SimpleQueue[tuple[Handle, Event]]") -> None:
        """Have all events, those so far included, put into `inbox` as (handle, event)."""
        with self._lock:
            for event in self._events:
                inbox.put((self, event))
            self._listeners.append(inbox)

    def tell(self, event: Event) -> None:
        """Pass an event on to the listeners (called by the worker)."""
        with self._lock:
            self._events.append(event)
            for inbox in self._listeners:
                inbox.put((self, event))


def merge(handles: Sequence[Handle]) -> Iterator[tuple[int, Event]]:
    """The events of several handles as they come, each with its handle's position in `handles`."""
    inbox: SimpleQueue[tuple[Handle, Event]] = SimpleQueue()
    positions = {id(handle): position for position, handle in enumerate(handles)}
    for handle in handles:
        handle.listen(inbox)
    running = len(handles)
    while running:
        handle, event = inbox.get()
        running -= isinstance(event, LAST_EVENTS)
        yield positions[id(handle)], event


@dataclass(eq=False)
class _Sample:
    """One picture in the making. `state` is None until its first tick."""

    number: int
    kind: Kind
    handle: Handle
    plan: Plan
    state: SampleState | None = None
    started: float = 0.0
    place: int | None = None
    unspent_s: float = 0.0  # what intermediate pictures may still cost
    prompts: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    negatives: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def steps_done(self) -> int:
        return self.state.index if self.state else 0

    def ticket(self) -> Ticket:
        job = self.handle.job
        return Ticket(
            number=self.number,
            kind=self.kind,
            owner=job.owner,
            steps_left=self.plan.nfe - self.steps_done,
            rows=1 if job.guidance == 1 else 2,
            shape=(job.model, job.size),
        )


@dataclass
class Pace:
    """A measured time in seconds, newer measurements counting more."""

    seconds: float = 0.0
    measured: int = 0

    def note(self, seconds: float) -> None:
        weight = FORGETTING if self.measured else 1.0
        self.seconds += weight * (seconds - self.seconds)
        self.measured += 1


class Worker:
    """Makes pictures with one model in one thread of this process.

    model: what to run. max_batch: the most pictures in one denoiser call. row: the measured time of one
    row of such a call (a picture with guidance has two). decode: that of decoding one picture.
    """

    def __init__(self, model: ImageModel, max_batch: int = 8) -> None:
        self.model = model
        self.max_batch = max_batch
        self.row = Pace()
        self.decode = Pace()
        self._samples: list[_Sample] = []
        self._submitted = 0
        self._closed = False
        self._changed = threading.Condition()
        self._warm_up()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Handle:
        """Queue a job and return at once; its handle tells the rest.

        Raises RequestError, in words, when this worker has no such model or size, when a prompt has more
        tokens than the model reads, or when the solver can't make so many steps.
        """
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """Queue several jobs that start together, such as a grid; all or none are accepted, see `submit`."""
        plans = [self._check(job) for job in jobs]
        handles = [Handle(self, job) for job in jobs]
        with self._changed:
            if self._closed:
                raise RequestError("The app is shutting down.")
            for handle, plan in zip(handles, plans, strict=True):
                self._submitted += 1
                self._samples.append(_Sample(self._submitted, handle.job.kind, handle, plan))
            self._tell_places()
            self._changed.notify_all()
        return handles

    def cancel(self, owner: str) -> None:
        """Cancel all jobs of an owner, running or waiting."""
        with self._changed:
            for sample in self._samples:
                if sample.handle.job.owner == owner:
                    sample.handle.cancelled = True
            self._changed.notify_all()

    def close(self) -> None:
        """Cancel everything and end the thread after the step it is in."""
        with self._changed:
            self._closed = True
            for sample in self._samples:
                sample.handle.cancelled = True
            self._changed.notify_all()
        self._thread.join()

    def promote(self, handle: Handle) -> None:
        """See `Handle.promote`."""
        with self._changed:
            for sample in self._samples:
                if sample.handle is handle and sample.kind == "speculative":
                    sample.kind = "refine"

    def wake(self) -> None:
        """Look at the jobs again now, even when there was nothing to do."""
        with self._changed:
            self._changed.notify_all()

    def _check(self, job: Job) -> Plan:
        model = self.model
        if (job.model, job.size) != (model.name, model.size):
            known = f"{model.name} makes pictures of {model.size} × {model.size} pixels"
            raise RequestError(f"There is no model {job.model} for {job.size} pixels here: {known}.")
        for name, text in (("The prompt", job.prompt), ("The negative prompt", job.negative_prompt)):
            tokens = model.count_tokens(text)
            if tokens > model.max_prompt_tokens:
                raise RequestError(
                    f"{name} is too long: {tokens} words and signs, and this model reads "
                    f"{model.max_prompt_tokens}. Leave something out."
                )
        try:
            return make_plan(
                job.solver, job.steps, model.schedule, learned=model.learned, guidance=job.guidance
            )
        except ValueError as error:
            raise RequestError(str(error)) from error

    # ---- from here on, all in the worker's own thread (but for _tell_places, which is under the lock)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._drop_cancelled()
                while not self._samples:
                    if self._closed:
                        return
                    self._changed.wait()
                    self._drop_cancelled()
                chosen = {
                    ticket.number for ticket in choose([s.ticket() for s in self._samples], self.max_batch)
                }
                batch = [sample for sample in self._samples if sample.number in chosen]
            try:
                self._tick(batch)
            except Exception:
                log.exception("A step failed; its %d pictures are given up", len(batch))
                self._end(batch, Failed("Something went wrong while making this picture. Please try again."))

    def _drop_cancelled(self) -> None:
        self._end([sample for sample in self._samples if sample.handle.cancelled], Cancelled())

    def _end(self, samples: Sequence[_Sample], event: Event) -> None:
        with self._changed:
            ending = [sample for sample in self._samples if sample in samples]
            self._samples = [sample for sample in self._samples if sample not in ending]
            self._tell_places()
        for sample in ending:
            sample.handle.tell(event)

    def _tell_places(self) -> None:
        """Tell those that have not begun where they stand, whenever that has changed."""
        line = line_up([sample.ticket() for sample in self._samples])
        places = {ticket.number: place for place, ticket in enumerate(line)}
        for sample in self._samples:
            place = places[sample.number]
            if sample.state is None and sample.place != place:
                sample.place = place
                sample.handle.tell(Queued(place, self._estimate(sample)))

    def _estimate(self, sample: _Sample) -> float:
        """Seconds until the sample is done, at the measured pace."""
        rows = rows_until_done(sample.ticket(), [other.ticket() for other in self._samples])
        return rows * self.row.seconds + self.decode.seconds

    @torch.inference_mode()
    def _tick(self, batch: Sequence[_Sample]) -> None:
        """One denoiser call for the batch; each sample takes one step, and those at the end are finished."""
        began = time.perf_counter()
        states = [sample.state or self._start(sample) for sample in batch]
        outputs = self._denoise(
            states,
            torch.stack([sample.prompts for sample in batch]),
            torch.stack([sample.negatives for sample in batch]),
            torch.tensor([sample.handle.job.guidance for sample in batch]),
        )
        expected = []
        for sample, state, output in zip(batch, states, outputs, strict=True):
            expected.append(state.x0(output) if sample.unspent_s >= self.decode.seconds else None)
            state.step(output)
        seconds = time.perf_counter() - began
        self.row.note(seconds / sum(sample.ticket().rows for sample in batch))
        for sample, state, x0 in zip(batch, states, expected, strict=True):
            sample.unspent_s += PICTURE_SHARE * seconds / len(batch)
            if state.done:
                self._finish(sample, state)
            else:
                self._report(sample, x0)

    def _start(self, sample: _Sample) -> SampleState:
        job, model = sample.handle.job, self.model
        sample.started = time.perf_counter()
        sample.prompts, sample.negatives = model.encode([job.prompt, job.negative_prompt])
        noise = noise_for_seed(job.seed, model.latent_shape).to(model.device)
        sample.state = SampleState.start(sample.plan, noise)
        return sample.state

    def _denoise(
        self,
        states: Sequence[SampleState],
        prompts: torch.Tensor,
        negatives: torch.Tensor,
        guidance: torch.Tensor,
    ) -> torch.Tensor:
        outputs = self.model.denoise(
            torch.stack([state.model_input() for state in states]),
            torch.tensor([state.timestep for state in states]),
            prompts,
            negatives,
            guidance,
        )
        if self.model.device.type != "cpu":
            # Without this the loop would run ahead of the device: no true times, no prompt cancelling.
            torch.accelerator.synchronize(self.model.device)
        return outputs

    def _report(self, sample: _Sample, x0: torch.Tensor | None) -> None:
        picture = None
        if x0 is not None:
            picture = self._decode(x0)
            sample.unspent_s = 0.0
        sample.handle.tell(Step(sample.steps_done, sample.plan.nfe, self._estimate(sample), picture))

    def _finish(self, sample: _Sample, state: SampleState) -> None:
        picture = self._decode(state.x)
        record = Record(
            sample.handle.job, self.model.revision, sample.plan.nfe, time.perf_counter() - sample.started
        )
        self._end([sample], Done(picture, record))

    def _decode(self, latents: torch.Tensor) -> Image.Image:
        began = time.perf_counter()
        picture = self.model.pictures(latents[None])[0]
        self.decode.note(time.perf_counter() - began)
        return picture

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Take the first call's extra cost before anybody waits, and measure a first pace."""
        model = self.model
        noise = noise_for_seed(0, model.latent_shape)
        state = SampleState.start(make_plan("consistency", 6, model.schedule, learned=model.learned), noise)
        state.x = state.x.to(model.device)
        prompts = model.encode([""])
        for _ in range(2):
            began = time.perf_counter()
            self._denoise([state], prompts, prompts, torch.tensor([2.0]))
            warm_s = time.perf_counter() - began
        self.row.note(warm_s / 2)
        model.pictures(state.x[None])
        self._decode(state.x)

"""The worker: one thread that makes pictures step by step for everybody at once.

At each tick it takes a batch from the queue, calls the network once for all of its samples, each with its own
timestep and guidance scale, and moves each along its own plan. A picture depends on its seed and settings
alone, never on the batch it was in. The page, the endpoints and all others submit jobs to it and listen to
the handles that they get.
"""

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from app.jobs.handle import Handle
from app.jobs.job import Cancelled, Event, Failed, Job, Kind, Record, Started, Step
from app.models import ImageModel, ModelFacts
from app.models.memory import is_out_of_memory, release_free_memory
from app.worker.calibration import calibrate
from app.worker.costs import Costs
from app.worker.decoder import FAILED, Decoder, DecodeRequest
from app.worker.denoiser import BatchDenoiser
from app.worker.queue import LONGEST_WAIT_S, SampleQueue
from app.worker.sample import Sample, start_samples
from app.worker.scheduling import SchedulingPolicy
from solver.diffusion import SampleError

log = logging.getLogger(__name__)

TOO_LARGE = Failed("There is not enough memory for this picture just now. Please try again in a minute.")
# Pictures on the way may cost this share of the time that their steps take.
SKETCH_SHARE = 0.1
# On a CPU, the free memory of past ticks is returned to the system at most this often: it takes about 20 ms.
RELEASE_EVERY_S = 30.0
# So many failing ticks in a row, and the device itself must be broken.
UNHEALTHY_FAILURES = 3


class Worker:
    """Makes pictures with one model in one thread of this process.

    Args:
        model: to make pictures with.
        policy: decides which samples take the next step.
        costs: of ticks on this device, at first; measured where not given.
        longest_wait_s: by kind of job, the wait beyond which it is refused.

    Attributes:
        speculates: whether it takes speculative jobs.
        ticks: denoiser calls so far.
        made: steps by the kind that their pictures had at the time; "wasted" counts those of speculative
            pictures that were given up.
        on_tick: called after each denoiser call with its seconds and its number of pictures.
    """

    def __init__(
        self,
        model: ImageModel,
        policy: SchedulingPolicy | None = None,
        costs: Costs | None = None,
        longest_wait_s: Mapping[Kind, float] = LONGEST_WAIT_S,
    ) -> None:
        policy = policy or SchedulingPolicy()
        self.model = model
        costs = costs or calibrate(model)
        self.speculates = policy.speculates
        self.ticks = 0
        self.made: Counter[str] = Counter()
        self.on_tick: Callable[[float, int], None] = lambda seconds, pictures: None
        self._numbers, self._requests = itertools.count(), itertools.count()
        self._failures = 0
        self._released = time.monotonic()
        self._queue = SampleQueue(policy, costs, longest_wait_s)
        self._denoiser = BatchDenoiser(model)
        self._decoder = Decoder(model, costs.decode_s)
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    @property
    def facts(self) -> ModelFacts:
        """The metadata of its model."""
        return self.model.facts

    @property
    def costs(self) -> Costs:
        """What ticks cost on this device, as the latest ones have it."""
        return self._queue.costs

    @property
    def healthy(self) -> bool:
        """Whether pictures can be made: its thread runs, and not every recent step has failed."""
        return self._failures < UNHEALTHY_FAILURES and self._thread.is_alive()

    def submit(self, job: Job) -> Handle:
        """Queue a job and return at once; see `submit_all`."""
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """Queue jobs that start together, such as a grid, and return at once; all or none are accepted.

        Raises:
            RequestError: the model can't make such pictures, see `ModelFacts.plan`, or one to start from is
                gone.
            Busy: they would have to wait for too long.
        """
        facts, request = self.facts, next(self._requests)
        own_pixels = facts.width * facts.height
        # Read here, where a picture that is gone fails nobody else's; once, since a grid has one start.
        starts = {job.start for job in jobs if job.start and facts.sees_start(job)}
        files = {start: start.picture for start in starts}
        samples = [
            Sample(
                number=next(self._numbers),
                request=request,
                handle=Handle(self, job),
                kind=job.kind,
                plan=facts.plan(job),
                rows=max(1, round(facts.rows(job.guidance) * job.width * job.height / own_pixels)),
                reference=facts.edits and facts.sees_start(job),
                file=files.get(job.start) if job.start else None,
            )
            for job in jobs
        ]
        self._queue.add(samples)
        return [sample.handle for sample in samples]

    def cancel(self, handle: Handle) -> None:
        """Give a job up at the next tick. Like `promote` and `favour`, ignores jobs that have ended."""
        self._queue.update(handle, cancelled=True)

    def promote(self, handle: Handle) -> None:
        """Turn a speculative job into a refinement."""
        if handle.job.kind == "speculative":
            self._queue.update(handle, kind="refine")

    def favour(self, handle: Handle) -> None:
        """Serve a speculative job before the others of its kind, and to the end."""
        self._queue.update(handle, favoured=True)

    def cancel_owner(self, owner: str) -> None:
        """Cancel all jobs of an owner, running or waiting."""
        self._queue.cancel(lambda sample: sample.job.owner == owner)

    def close(self) -> None:
        """Cancel everything and end the thread after the step it is in."""
        self._queue.close()
        self._thread.join()
        self._decoder.close()

    # ---- from here on, everything runs in the worker's own thread

    def _run(self) -> None:
        """Serve until the worker is closed, whatever happens."""
        while True:
            try:
                return self._serve()
            except Exception:
                log.exception("The worker failed outside of a step; started pictures are given up")
                self._give_up(self._queue.started(), FAILED)

    def _serve(self) -> None:
        """Tick until the queue is closed and empty; a failing tick fails its own pictures only."""
        while True:
            batch, cancelled = self._queue.next_batch(self._denoiser.max_rows)
            self._give_up(cancelled, Cancelled())
            if not batch and not cancelled:
                return
            try:
                if batch:
                    self._tick(batch)
                    self._failures = 0
            except Exception as error:
                log.exception("A step failed; its %d pictures are given up", len(batch))
                self._failures += 1
                self._give_up(batch, TOO_LARGE if is_out_of_memory(error) else FAILED)
            batch, cancelled = [], []  # what has ended is not kept while there is nothing to do

    @torch.inference_mode()
    def _tick(self, batch: Sequence[Sample]) -> None:
        """Advance each sample of the batch by one step, and finish those at the end of their plans."""
        began = time.perf_counter()
        self._start([sample for sample in batch if not sample.started])
        called = time.perf_counter()
        batch, outputs = self._without_failed(batch, self._denoiser.denoise(batch))
        if not batch:
            return
        sketches = self._sketches(batch, outputs)
        for sample, output in zip(batch, outputs, strict=True):
            sample.state.step(output)
        rows = sum(sample.rows for sample in batch)
        self._queue.costs = self.costs.learn(rows, time.perf_counter() - called)
        self._account(batch, sketches, time.perf_counter() - began)
        expected = self._queue.forecast()
        requests = [
            self._final(sample)
            if sample.state.done
            else self._progress(sample, sketch, expected[sample.number].seconds)
            for sample, sketch in zip(batch, sketches, strict=True)
        ]
        self._queue.remove(sample for sample in batch if sample.state.done)
        self._decoder.submit(requests)
        if self.model.device.type == "cpu" and time.monotonic() - self._released >= RELEASE_EVERY_S:
            release_free_memory()
            self._released = time.monotonic()

    def _without_failed(
        self, batch: Sequence[Sample], outputs: Sequence[torch.Tensor | SampleError]
    ) -> tuple[list[Sample], list[torch.Tensor]]:
        """Give up the samples that failed alone; return the others with their outputs."""
        made = []
        for sample, output in zip(batch, outputs, strict=True):
            if isinstance(output, SampleError):
                log.error("A picture failed", exc_info=output)
                self._give_up([sample], TOO_LARGE if is_out_of_memory(output) else FAILED)
            else:
                made.append((sample, output))
        return [sample for sample, _ in made], [output for _, output in made]

    def _start(self, new: Sequence[Sample]) -> None:
        start_samples(self.model, new)
        together = Counter(sample.request for sample in new)
        for sample in new:
            sample.handle.tell(Started(together[sample.request]))

    def _sketches(
        self, batch: Sequence[Sample], outputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """The expected final latents of the samples that can afford to be shown; none while others wait."""
        if self._queue.awaited() > len(batch) or batch[0].kind == "speculative":
            return [None] * len(batch)
        return [
            sample.state.x0(output) if sample.sketch_budget_s >= self._decoder.seconds else None
            for sample, output in zip(batch, outputs, strict=True)
        ]

    def _account(
        self, batch: Sequence[Sample], sketches: Sequence[torch.Tensor | None], seconds: float
    ) -> None:
        """Count a tick that took `seconds`, and share its cost among its samples."""
        self.ticks += 1
        self.on_tick(seconds, len(batch))
        for sample, sketch in zip(batch, sketches, strict=True):
            self.made[sample.kind] += 1
            sample.speculative_steps += sample.kind == "speculative"
            sample.seconds += seconds
            sample.stepped = time.monotonic()
            left_s = sample.sketch_budget_s if sketch is None else 0.0
            sample.sketch_budget_s = left_s + SKETCH_SHARE * seconds / len(batch)

    def _progress(self, sample: Sample, sketch: torch.Tensor | None, remaining_s: float) -> DecodeRequest:
        step = Step(sample.steps_done, sample.plan.nfe, remaining_s)
        return DecodeRequest(sample.handle, step, sketch, preview=bool(self.facts.preview_decoder))

    def _final(self, sample: Sample) -> DecodeRequest:
        decoder = self.facts.decoder_of(sample.job)
        record = Record(sample.job, self.facts.revision, sample.plan.nfe, sample.seconds, decoder)
        return DecodeRequest(sample.handle, record, sample.state.x, preview=bool(decoder))

    def _give_up(self, samples: Sequence[Sample], event: Event) -> None:
        """End samples early, and say why."""
        self._queue.remove(samples)
        for sample in samples:
            self.made["wasted"] += sample.speculative_steps
            sample.handle.tell(event)

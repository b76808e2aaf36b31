"""The backend for Hugging Face Spaces with ZeroGPU: every request borrows a GPU while it runs.

The package `spaces` runs a function with a GPU in a forked process; arguments and yielded values are pickled.
All jobs of a request are sent there together, a worker there makes them, and its events come back. Outside
of a Space everything happens in this process.
"""

import itertools
import logging
import mmap
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextvars import copy_context
from dataclasses import replace

import torch

try:
    import spaces  # before the model is loaded: on ZeroGPU it makes "cuda" usable before a GPU is assigned
except ImportError:
    spaces = None

from app.jobs.handle import Handle, merge
from app.jobs.job import Cancelled, Event, Failed, Job, RequestError
from app.models import Choice, ImageModel, ModelFacts, open_model
from app.worker.costs import Costs
from app.worker.loop import UNHEALTHY_FAILURES, Worker
from solver.diffusion import TOKENIZING

log = logging.getLogger(__name__)

# Assumed, not measured: a calibration would use up the visitor's GPU time. A grid of eight with guidance fits
# into one call; the worker corrects its estimates while it runs.
COSTS = Costs(rows=(1, 2, 4, 8, 16, 32), seconds=(0.03, 0.031, 0.034, 0.045, 0.07, 0.13), decode_s=0.03)

# The duration asked of ZeroGPU suffices for models eight times as slow as COSTS. No more than that: shorter
# requests are served first, and the visitor's quota must cover the whole duration.
START_S = 10.0  # forking, and moving the weights to the GPU
ROW_S = 0.035  # one row of a denoiser call
PICTURE_S = 0.25  # decoding, and sending the picture back
LONGEST_S = 120.0  # most visitors are refused more

# Number of concurrent jobs that can be cancelled one by one.
SLOTS = 2**16
# Time limit of `close` for each running request.
CLOSING_S = 10.0

# Title of the package's error -> message for the visitor.
REFUSALS = {
    "ZeroGPU quota exceeded": (
        "Your time on the GPU of this Space is used up for now. Log in to Hugging Face to get more, or wait."
    ),
    "ZeroGPU pending credits exceeded": (
        "Too many of your pictures are being made at once. Please try again when they are done."
    ),
    "ZeroGPU illegal duration": (
        "This would take longer than a visitor may have the GPU. Ask for fewer steps or fewer previews."
    ),
    "ZeroGPU queue timeout": (
        "No GPU became free in time. Please try again in a minute; logged in to Hugging Face, you wait less."
    ),
    "ZeroGPU client error": "No GPU is to be had just now. Please load this page again, or come back later.",
}
_ABORTED = "The GPU was taken away before this was done. Please try again, with fewer steps if need be."
_FAILED = "Something went wrong while making this picture. Please try again."

# A fork copies a locked lock, which no thread of the child would release.
os.register_at_fork(
    before=TOKENIZING.acquire, after_in_parent=TOKENIZING.release, after_in_child=TOKENIZING.release
)


def start(choice: Choice) -> "ZeroGpu":
    """Start the backend, see `app.backends.start`; uncompiled, as each request has its own process."""
    return ZeroGpu(open_model(replace(choice, compiled=False)))


class ZeroGpu:
    """Backend that makes each request in one call of a GPU function.

    It does not speculate, since visitors pay for the GPU with their quota.

    Attributes:
        healthy: False after several failures in a row that no visitor could have avoided.
    """

    def __init__(self, model: ImageModel) -> None:
        self.speculates = False
        self.healthy = True
        self._model = model
        self._process = os.getpid()
        self._failures = 0
        self._closed = False
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._numbers = itertools.count()
        self._running: dict[Handle, int] = {}
        self._threads: set[threading.Thread] = set()
        # Shared with all forks; a job's byte is 1 once it is cancelled. Closing the GPU function's generator
        # would end all jobs of its request, and is impossible while it waits for a GPU.
        self._cancelled = mmap.mmap(-1, SLOTS)
        self._make_on_gpu = spaces.GPU(duration=self.duration)(self._make) if spaces else self._make

    @property
    def facts(self) -> ModelFacts:
        """Metadata of the model."""
        return self._model.facts

    def submit(self, job: Job) -> Handle:
        """Start a job and return at once; see `submit_all`."""
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """Start several jobs in one call of the GPU function, and return at once.

        Whether a GPU is available turns out later, in the handles' events.

        Raises:
            RequestError: the model cannot make them, see `ModelFacts.plan`.
        """
        for job in jobs:
            self.facts.plan(job)
            if job.start:
                job.start.check()
            if job.kind == "speculative":
                raise RequestError("This backend makes no pictures in advance.")
        handles = [Handle(self, job) for job in jobs]
        # The package reads from the context which visitor's quota to charge.
        thread = threading.Thread(
            target=copy_context().run, args=(self._request, handles), name="request", daemon=True
        )
        with self._lock:
            if self._closed:
                raise RequestError("The app is shutting down.")
            for handle in handles:
                self._running[handle] = number = next(self._numbers) % SLOTS
                self._cancelled[number] = 0
            self._threads.add(thread)
            thread.start()
        return handles

    def cancel_owner(self, owner: str) -> None:
        """Cancel all jobs of an owner, running or waiting."""
        with self._lock:
            handles = [handle for handle in self._running if handle.job.owner == owner]
        for handle in handles:
            handle.cancel()

    def close(self) -> None:
        """Cancel all jobs, and wait for their threads."""
        with self._lock:
            self._closed = True
            handles, threads = list(self._running), list(self._threads)
        for handle in handles:
            handle.cancel()
        for thread in threads:
            thread.join(CLOSING_S)

    def cancel(self, handle: Handle) -> None:
        """Report the job as cancelled at once; the GPU function stops it at its next event."""
        with self._lock:
            number = self._running.get(handle)
            if number is None:
                return
            self._cancelled[number] = 1
        handle.tell(Cancelled())

    def promote(self, handle: Handle) -> None:
        """Do nothing: there are no speculative jobs here."""

    favour = promote

    def duration(self, jobs: Sequence[Job], numbers: Sequence[int] = ()) -> float:
        """Seconds to ask ZeroGPU for, at most LONGEST_S; takes the arguments of the GPU function."""
        rows = sum(self.facts.plan(job).nfe * (1 if job.guidance == 1 else 2) for job in jobs)
        return min(START_S + ROW_S * rows + PICTURE_S * len(jobs), LONGEST_S)

    def _request(self, handles: Sequence[Handle]) -> None:
        """Call the GPU function and pass its events to the handles; runs in a thread of this process."""
        failed = _FAILED
        jobs, numbers = [handle.job for handle in handles], [self._running[handle] for handle in handles]
        try:
            for position, event in self._make_on_gpu(jobs, numbers):
                handles[position].tell(event)
            self._failures = 0
        except Exception as error:
            log.exception("A GPU function failed with %d pictures", len(handles))
            failed = _message(error)
            self._failures += _title(error) not in REFUSALS
        self.healthy = self._failures < UNHEALTHY_FAILURES
        with self._lock:
            for handle in handles:
                del self._running[handle]
            self._threads.discard(threading.current_thread())
        for handle in handles:
            handle.tell(Failed(failed))  # ignored by those that have ended

    def _make(self, jobs: Sequence[Job], numbers: Sequence[int]) -> Iterator[tuple[int, Event]]:
        """Make jobs, and yield (position in `jobs`, event): the GPU function, run in the forked process."""
        if os.getpid() != self._process:
            torch.set_num_threads(1)  # the pool's threads did not survive the fork; waiting for them hangs
        with self._alone:  # without ZeroGPU requests share the process, and a model serves one thread
            worker = Worker(self._model, costs=COSTS)
            try:
                handles = worker.submit_all(jobs)
                for position, event in merge(handles):
                    for handle, number in zip(handles, numbers, strict=True):
                        if self._cancelled[number]:
                            handle.cancel()
                    yield position, event
            finally:
                worker.close()


def _title(error: Exception) -> str:
    """Title of an error of Gradio's or the package's; "" for other errors."""
    return str(getattr(error, "title", ""))


def _message(error: Exception) -> str:
    """Message for the visitor, with the time to try again if the package names one."""
    message = str(getattr(error, "message", error))
    if "task aborted" in message:
        return _ABORTED
    when = re.search(r"Try again in [^.]+\.", message)
    words = REFUSALS.get(_title(error), _FAILED)
    return f"{words} {when.group()}" if when else words

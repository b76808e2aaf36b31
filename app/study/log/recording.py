"""Log the requests to a backend and their progress."""

import secrets
import threading
from collections.abc import Sequence

from app.backends.base import Backend, BackendWrapper
from app.jobs import job as jobs_
from app.jobs.handle import Handle
from app.jobs.job import LAST_EVENTS, Job
from app.study.log.events import ComputeEnd, ComputeStart, RequestQueued, Submit
from app.study.log.writer import Note, NotRecorded, wait_for

OUTCOMES = {jobs_.Failed: "failed", jobs_.Cancelled: "cancelled", jobs_.Done: "done"}


class RecordingBackend(BackendWrapper):
    """A backend that passes jobs on to another one, and logs their requests.

    Args:
        speculate: allow speculative jobs, if the other backend makes them at all.
    """

    def __init__(self, backend: Backend, note: Note, speculate: bool = True) -> None:
        super().__init__(backend)
        self._note, self._speculate = note, speculate

    @property
    def speculates(self) -> bool:
        return self._speculate and self._backend.speculates

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """See `app.backends.base.Backend`. Raises NotRecorded as well; then no picture is made."""
        handles = self._backend.submit_all(jobs)
        if handles:
            self.record(handles, jobs[0].kind)
        return handles

    def record(self, handles: Sequence[Handle], purpose: str) -> None:
        """Log that these jobs were requested together, and their progress; see `submit_all`."""
        job, request = handles[0].job, secrets.token_hex(8)
        seeds = [handle.job.variation.seed if handle.job.variation else handle.job.seed for handle in handles]
        written = self._note(
            Submit(request, purpose, seeds, job.steps, job.solver, job.model, float(job.guidance))
        )
        progress = _Progress(self._note, request, self.facts.place, len(handles))
        for handle in handles:
            handle.listen(progress)
        try:
            wait_for(written)
        except NotRecorded:
            for handle in handles:
                handle.cancel()
            raise


class _Progress:
    """Logs the progress of one request; its handles call `put`, in the thread of the worker."""

    def __init__(self, note: Note, request: str, device: str, count: int) -> None:
        self._note, self._request, self._device, self._left = note, request, device, count
        self._queued = self._begun = False
        self._outcomes: set[str] = set()
        self._revision, self._evaluations = "", 0
        self._lock = threading.Lock()

    def put(self, item: tuple[Handle, jobs_.Event]) -> None:
        _, event = item
        with self._lock:
            if isinstance(event, jobs_.Queued) and not self._queued:
                self._queued = True
                self._note(RequestQueued(self._request, event.place, float(event.estimate_s)))
            if isinstance(event, jobs_.Started) and not self._begun:
                self._begun = True
                self._note(ComputeStart(self._request, self._device, event.batch))
            if isinstance(event, jobs_.Done):
                self._revision = event.record.revision
                self._evaluations += event.record.evaluations
            if isinstance(event, LAST_EVENTS):
                self._outcomes.add(OUTCOMES[type(event)])
                self._left -= 1
                if not self._left:
                    worst = next(each for each in OUTCOMES.values() if each in self._outcomes)
                    self._note(ComputeEnd(self._request, worst, self._revision, self._evaluations))

"""Writes down what happens: events to the log in the order in which they happened, and a backend's doings."""

import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue

from app.backends.base import Backend
from app.jobs import job as jobs_
from app.jobs.handle import Handle
from app.jobs.job import LAST_EVENTS, Job, RequestError
from app.models import ModelFacts
from app.study.log.events import Body, ComputeEnd, ComputeStart, Event, Queued, Submit
from app.study.log.store import Store
from app.worker.scheduling import Policy

log = logging.getLogger("app.study")

OUTCOMES = {jobs_.Failed: "failed", jobs_.Cancelled: "cancelled", jobs_.Done: "done"}


class NotRecorded(RequestError):
    """The log could not be written, and so what was asked for is not done."""


class Writer:
    """Appends events to a store in a thread of its own, one after the other.

    Whoever makes pictures posts, and never waits; whoever answers a person writes, and goes on once the event
    is on the disk. A process that is killed so loses at most what was posted a moment ago.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._posted: SimpleQueue[tuple[Event, Future[None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="study-log", daemon=True)
        self._lock = threading.Lock()
        self._closed = False
        self._thread.start()

    def post(self, event: Event) -> "Future[None]":
        """Have the event written next; the future says when it is, or why it can't be."""
        written: Future[None] = Future()
        with self._lock:
            if self._closed:  # nobody would ever come to write it
                written.set_exception(RuntimeError("the log is closed"))
            else:
                self._posted.put((event, written))
        return written

    def close(self) -> None:
        """Write what was posted, and close the store."""
        with self._lock:
            self._closed = True
            self._posted.put(None)
        self._thread.join()
        self.store.close()

    def _run(self) -> None:
        while posted := self._posted.get():
            event, written = posted
            try:
                self.store.append(event)
            except Exception as error:
                log.exception("An event of the kind %s could not be written", event.kind)
                written.set_exception(error)
            else:
                written.set_result(None)


Note = Callable[[Body], "Future[None]"]
"""Has an event with this body written, as happening now."""


def wait_for(written: "Future[None]") -> None:
    """Go on once the event is on the disk. Raises NotRecorded where it can't be."""
    try:
        written.result()
    except Exception as error:
        raise NotRecorded("This could not be recorded. Please try again in a minute.") from error


class Recording:
    """A backend that passes everything on to another one, and notes what is asked for and what becomes of it.

    speculate: whether guesses may be made, where the backend's own policy is to make them.
    """

    def __init__(self, backend: Backend, note: Note, speculate: bool = True) -> None:
        self._backend, self._note, self._speculate = backend, note, speculate

    @property
    def policy(self) -> Policy:
        """See `app.backends.base.Backend`."""
        policy = self._backend.policy
        return replace(policy, speculate=policy.speculate and self._speculate)

    @property
    def facts(self) -> ModelFacts:
        """See `app.backends.base.Backend`."""
        return self._backend.facts

    @property
    def healthy(self) -> bool:
        """See `app.backends.base.Backend`."""
        return self._backend.healthy

    def submit(self, job: Job) -> Handle:
        """See `submit_all`."""
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """See `app.backends.base.Backend`; raises NotRecorded, too, and then nothing is made."""
        handles = self._backend.submit_all(jobs)
        if handles:
            self.follow(handles, jobs[0].kind)
        return handles

    def follow(self, handles: Sequence[Handle], purpose: str) -> None:
        """Note that these were asked for together, and what becomes of them; see `submit_all`."""
        job, request = handles[0].job, secrets.token_hex(8)
        seeds = [handle.job.variation.seed if handle.job.variation else handle.job.seed for handle in handles]
        written = self._note(
            Submit(request, purpose, seeds, job.steps, job.solver, job.model, float(job.guidance))
        )
        watch = _Watch(self._note, request, self.facts.place, len(handles))
        for handle in handles:
            handle.listen(watch)
        try:
            wait_for(written)
        except NotRecorded:
            for handle in handles:
                handle.cancel()
            raise

    def cancel_owner(self, owner: str) -> None:
        """See `app.backends.base.Backend`."""
        self._backend.cancel_owner(owner)

    def close(self) -> None:
        """See `app.backends.base.Backend`."""
        self._backend.close()


class _Watch:
    """Listens to the handles of one request; called by whoever makes the pictures, and keeps nobody."""

    def __init__(self, note: Note, request: str, device: str, count: int) -> None:
        self._note, self._request, self._device, self._left = note, request, device, count
        self._queued = self._begun = False
        self._outcomes: set[str] = set()
        self._revision, self._evaluations = "", 0
        self._lock = threading.Lock()

    def put(self, told: tuple[Handle, jobs_.Event]) -> None:
        _, event = told
        with self._lock:
            if isinstance(event, jobs_.Queued) and not self._queued:
                self._queued = True
                self._note(Queued(self._request, event.place, float(event.estimate_s)))
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

"""A backend that counts, logs and limits requests, and finishes them before it stops."""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from app.backends.base import Backend, BackendWrapper
from app.jobs.handle import Handle
from app.jobs.job import LAST_EVENTS, Busy, Cancelled, Done, Event, Failed, Job, Queued, RequestError
from app.page.gradio_internals import current_request
from app.server.limits import MAX_PEOPLE, LimitReached, Limits, person_of
from app.server.metrics import Metrics
from app.worker.queue import MAX_OPEN_STEPS

log = logging.getLogger("app.jobs")

STOPPING = "The app is being restarted. Please try again in a minute."
HANDED_BACK = "The app is being restarted, and this was not finished. Please ask for it again in a minute."
# Limit on the steps that one person waits for, in all sessions together. Many may share an address.
MAX_PERSON_STEPS = 4 * MAX_OPEN_STEPS
OUTCOMES = {Done: "done", Failed: "failed", Cancelled: "cancelled"}


class MeteredBackend(BackendWrapper):
    """A backend that meters another one; see `app.backends.base.Backend` for what it offers.

    Args:
        backend: makes the pictures.
        metrics: where to count.
        limits: of each person; None for no limits.
    """

    def __init__(self, backend: Backend, metrics: Metrics, limits: Limits | None = None) -> None:
        super().__init__(backend)
        self.metrics = metrics
        self.limits = limits
        self._stopping = False
        self._changed = threading.Condition()
        self._open: dict[Handle, str] = {}  # with the person behind each
        self._people: dict[str, str] = {}  # the person behind each owner, the latest last
        metrics.ready.set_function(lambda: float(self.state == "ready"))
        metrics.healthy.set_function(lambda: float(self.healthy))

    @property
    def state(self) -> str:
        """One of "ready", "loading", "stopping" and "broken"."""
        if self._stopping:
            return "stopping"
        try:
            _ = self.facts
        except Busy:
            return "loading"
        return "ready" if self.healthy else "broken"

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """See `Backend`.

        Raises LimitReached, too, if the person has used up their share, and Busy if they wait for more than
        MAX_PERSON_STEPS.
        """
        person, request_id = self._asking(jobs)
        speculative = all(job.kind == "speculative" for job in jobs)
        try:
            if self._stopping:
                raise Busy(STOPPING)
            if not speculative:
                self._check_open_steps(person, sum(job.steps for job in jobs))
            if self.limits and not speculative:
                self.limits.take(person, 0)  # a request that is refused below costs nothing
            handles = self._backend.submit_all(jobs)
        except RequestError as error:
            if not speculative:
                self._count_refusal(error, len(jobs), request_id)
            raise
        for handle in handles:
            with self._changed:
                self._open[handle] = person
            handle.listen(_Meter(self, handle, person, request_id))
        if self.limits and not speculative:
            self.limits.charge(person, sum(job.steps for job in jobs))
        return handles

    def drain(self, grace_s: float) -> bool:
        """Accept nothing more, let pending requests finish within `grace_s` seconds, and fail the rest.

        Returns whether everything was finished.
        """
        self._stopping = True
        with self._changed:
            finished = self._changed.wait_for(lambda: not any(map(_is_awaited, self._open)), grace_s)
            left = list(self._open)
        for handle in left:
            if _is_awaited(handle):
                handle.tell(Failed(HANDED_BACK))
            handle.cancel()
        return finished

    def close(self) -> None:
        self._stopping = True
        super().close()

    def forget(self, handle: Handle) -> None:
        """Count a handle as ended."""
        with self._changed:
            self._open.pop(handle, None)
            self._changed.notify_all()

    def _check_open_steps(self, person: str, steps: int) -> None:
        with self._changed:
            mine = [handle for handle, other in self._open.items() if other == person and _is_awaited(handle)]
        open_steps = sum(handle.job.steps for handle in mine)
        if person and open_steps and open_steps + steps > MAX_PERSON_STEPS:
            raise Busy(
                f"{len(mine)} pictures that you, or others at your address, asked for are not finished. "
                "Please try again in a minute."
            )

    def _asking(self, jobs: Sequence[Job]) -> tuple[str, str]:
        """Return the person who makes a request, as login or address, and the id of the HTTP request.

        Speculative jobs are submitted outside of Gradio's events, for the person of the owner's last request.
        """
        owner = jobs[0].owner
        request: Any = current_request()
        if request is None:
            return self._people.get(owner, ""), ""
        http_request = getattr(request, "request", None)
        person = person_of(request)
        with self._changed:
            self._people.pop(owner, None)
            self._people[owner] = person
            if len(self._people) > MAX_PEOPLE:
                del self._people[next(iter(self._people))]
        return person, str(http_request.scope.get("request_id", "")) if http_request else ""

    def _count_refusal(self, error: RequestError, pictures: int, request_id: str) -> None:
        reason = "invalid"
        if isinstance(error, Busy):
            reason = "stopping" if self._stopping else "limit" if isinstance(error, LimitReached) else "busy"
        self.metrics.refusals.labels(reason).inc()
        log.info("refused", extra={"reason": reason, "pictures": pictures, "request": request_id})


class _Meter:
    """Passes the events of one handle to metrics, limits and log, in the worker's thread."""

    def __init__(self, backend: MeteredBackend, handle: Handle, person: str, request_id: str) -> None:
        self._backend, self._metrics = backend, backend.metrics
        self._person, self._request_id = person, request_id
        self._job = handle.job
        self._submitted = time.monotonic()
        self._waited: float | None = None
        self._speculated = 0  # steps made before the picture was picked
        self._gauge = self._metrics.open.labels(self._job.kind, "waiting")
        self._gauge.inc()

    def put(self, item: tuple[Handle, Event]) -> None:
        handle, event = item
        if isinstance(event, Queued):
            return
        if self._waited is None and not isinstance(event, Failed | Cancelled):
            self._begin()
        if self._job.kind == "speculative" and handle.promoted is None:
            self._speculated = getattr(event, "step", self._speculated)
        if isinstance(event, LAST_EVENTS):
            self._end(handle, event)

    def _begin(self) -> None:
        self._waited = time.monotonic() - self._submitted
        self._gauge.dec()
        self._gauge = self._metrics.open.labels(self._job.kind, "running")
        self._gauge.inc()
        if self._job.kind != "speculative":
            self._metrics.wait.labels(self._job.kind).observe(self._waited)

    def _end(self, handle: Handle, event: Event) -> None:
        self._gauge.dec()
        self._backend.forget(handle)
        since, kind = self._submitted, self._job.kind
        if kind == "speculative":
            fate = "wasted" if handle.promoted is None else "used"
            self._metrics.guesses.labels(fate).inc()
            self._metrics.guess_steps.labels(fate).inc(self._speculated)
            if handle.promoted is None:
                return
            since, kind = handle.promoted, "refine"
            if self._backend.limits:
                self._backend.limits.charge(self._person, self._job.steps)
        outcome, seconds = OUTCOMES[type(event)], time.monotonic() - since
        self._metrics.pictures.labels(kind, outcome).inc()
        if isinstance(event, Done):
            self._metrics.seconds.labels(kind).observe(seconds)
        log.info(
            "%s %s",
            kind,
            outcome,
            extra={
                "request": self._request_id,
                "kind": kind,
                "outcome": outcome,
                "steps": self._job.steps,
                "seconds": round(seconds, 3),
                "waited": None if self._waited is None else round(self._waited, 3),
                "guessed": self._speculated or None,
            },
        )


def _is_awaited(handle: Handle) -> bool:
    """Whether a user waits for the picture: it is not speculative, or was promoted."""
    return handle.job.kind != "speculative" or handle.promoted is not None

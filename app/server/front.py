"""What stands before the backend: it counts, logs and limits what is asked for, and ends in good order."""

import logging
import threading
import time
from collections.abc import Sequence

from gradio.context import LocalContext

from app.backends.base import Backend
from app.jobs.handle import Handle
from app.jobs.job import LAST_EVENTS, Busy, Cancelled, Done, Event, Failed, Job, Queued, RequestError
from app.models import ModelFacts
from app.server.limits import MAX_PEOPLE, Limits, TooMuch, address_of
from app.server.metrics import Metrics
from app.worker.scheduling import Policy

log = logging.getLogger("app.jobs")

STOPPING = "The app is being restarted. Please try again in a minute."
HANDED_BACK = "The app is being restarted, and this was not finished. Please ask for it again in a minute."
OUTCOMES = {Done: "done", Failed: "failed", Cancelled: "cancelled"}


class Front:
    """A backend as the outside meets it. It looks like one, and passes everything on to `backend`.

    metrics: where to count. limits: how much each person may ask for; None for no limits.
    """

    def __init__(self, backend: Backend, metrics: Metrics, limits: Limits | None = None) -> None:
        self.metrics = metrics
        self._backend = backend
        self._limits = limits
        self._stopping = False
        self._changed = threading.Condition()
        self._open: set[Handle] = set()
        self._people: dict[str, str] = {}  # who is behind an owner
        metrics.ready.set_function(lambda: float(self.state == "ready"))
        metrics.healthy.set_function(lambda: float(self.healthy))

    @property
    def policy(self) -> Policy:
        """Who goes first."""
        return self._backend.policy

    @property
    def facts(self) -> ModelFacts:
        """What there is to know of the model."""
        return self._backend.facts

    @property
    def healthy(self) -> bool:
        """Whether it can make pictures, as far as it knows."""
        return self._backend.healthy

    @property
    def state(self) -> str:
        """In a word: "ready" for work, "loading", "stopping", or "broken"."""
        if self._stopping:
            return "stopping"
        try:
            _ = self.facts
        except Busy:
            return "loading"
        return "ready" if self.healthy else "broken"

    def submit(self, job: Job) -> Handle:
        """See `app.backends.base.Backend`. Raises TooMuch, too, for a person who had their share."""
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """See `submit`."""
        person, request = self._asking(jobs)
        guess = all(job.kind == "speculative" for job in jobs)
        try:
            if self._stopping:
                raise Busy(STOPPING)
            if self._limits and not guess:
                self._limits.take(person, 0)  # what is refused for other reasons costs nothing
            handles = self._backend.submit_all(jobs)
        except RequestError as error:
            self._refused(error, jobs, request)
            raise
        for handle in handles:
            self._watch(handle, person, request)
        if self._limits and not guess:
            self._limits.charge(person, sum(job.steps for job in jobs))
        return handles

    def cancel(self, owner: str) -> None:
        """Cancel all jobs of an owner, running or waiting."""
        self._backend.cancel(owner)

    def drain(self, grace_s: float) -> bool:
        """Accept nothing more, give what somebody waits for `grace_s` seconds, and hand back what is left.

        Whoever asked for what is left is told so. Returns whether everything was finished.
        """
        self._stopping = True
        with self._changed:
            finished = self._changed.wait_for(lambda: not any(map(_awaited, self._open)), grace_s)
            left = list(self._open)
        for handle in left:
            if _awaited(handle):
                handle.tell(Failed(HANDED_BACK))
            handle.cancel()
        return finished

    def close(self) -> None:
        """Cancel everything, and end."""
        self._stopping = True
        self._backend.close()

    def _asking(self, jobs: Sequence[Job]) -> tuple[str, str]:
        """Who asks, by name or address, and the id of the HTTP request, while Gradio runs an event.

        Guesses are made outside of events, for whoever had the owner's last request.
        """
        owner = jobs[0].owner if jobs else ""
        asking = LocalContext.request.get(None)
        if asking is None:
            return self._people.get(owner, ""), ""
        client, request = getattr(asking, "client", None), getattr(asking, "request", None)
        person = asking.username or (address_of(client.host) if client else "")
        with self._changed:
            self._people.pop(owner, None)
            self._people[owner] = person
            if len(self._people) > MAX_PEOPLE:
                del self._people[next(iter(self._people))]
        return person, str(request.scope.get("request_id", "")) if request else ""

    def _watch(self, handle: Handle, person: str, request: str) -> None:
        with self._changed:
            self._open.add(handle)
        handle.listen(_Watch(self, handle, person, request))

    def _ended(self, handle: Handle) -> None:
        with self._changed:
            self._open.discard(handle)
            self._changed.notify_all()

    def _refused(self, error: RequestError, jobs: Sequence[Job], request: str) -> None:
        if jobs and jobs[0].kind == "speculative":
            return  # nobody asked, and nobody is told
        reason = "invalid"
        if isinstance(error, Busy):
            reason = "stopping" if self._stopping else "limit" if isinstance(error, TooMuch) else "busy"
        self.metrics.refusals.labels(reason).inc()
        log.info("refused", extra={"reason": reason, "pictures": len(jobs), "request": request})


class _Watch:
    """Listens to one handle, for the figures and the log. It is called by whoever makes the picture."""

    def __init__(self, front: Front, handle: Handle, person: str, request: str) -> None:
        self._front, self._metrics = front, front.metrics
        self._person, self._request = person, request
        self._job = handle.job
        self._asked = time.monotonic()
        self._waited: float | None = None
        self._guessed = 0  # steps that were made before anybody wanted the picture
        self._gauge = self._metrics.open.labels(self._job.kind, "waiting")
        self._gauge.inc()

    def put(self, told: tuple[Handle, Event]) -> None:
        handle, event = told
        if isinstance(event, Queued):
            return
        if self._waited is None and not isinstance(event, Failed | Cancelled):
            self._begin()
        if self._job.kind == "speculative" and handle.promoted is None:
            self._guessed = getattr(event, "step", self._guessed)
        if isinstance(event, LAST_EVENTS):
            self._end(handle, event)

    def _begin(self) -> None:
        self._waited = time.monotonic() - self._asked
        self._gauge.dec()
        self._gauge = self._metrics.open.labels(self._job.kind, "running")
        self._gauge.inc()
        if self._job.kind != "speculative":
            self._metrics.wait.labels(self._job.kind).observe(self._waited)

    def _end(self, handle: Handle, event: Event) -> None:
        self._gauge.dec()
        self._front._ended(handle)
        asked, kind = self._asked, self._job.kind
        if kind == "speculative":
            fate = "wasted" if handle.promoted is None else "used"
            self._metrics.guesses.labels(fate).inc()
            self._metrics.guess_steps.labels(fate).inc(self._guessed)
            if handle.promoted is None:
                return
            asked, kind = handle.promoted, "refine"
            if self._front._limits:
                self._front._limits.charge(self._person, self._job.steps)
        outcome, seconds = OUTCOMES[type(event)], time.monotonic() - asked
        self._metrics.pictures.labels(kind, outcome).inc()
        if isinstance(event, Done):
            self._metrics.seconds.labels(kind).observe(seconds)
        log.info(
            "%s %s",
            kind,
            outcome,
            extra={
                "request": self._request,
                "kind": kind,
                "outcome": outcome,
                "steps": self._job.steps,
                "seconds": round(seconds, 3),
                "waited": None if self._waited is None else round(self._waited, 3),
                "guessed": self._guessed or None,
            },
        )


def _awaited(handle: Handle) -> bool:
    """Whether somebody waits for it: it is no guess, or was one."""
    return handle.job.kind != "speculative" or handle.promoted is not None

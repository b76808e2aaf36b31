"""A backend that is still on its way: the page is there at once, and says so until pictures can be made."""

import threading
from collections.abc import Callable, Sequence

from app.backends.base import Backend
from app.jobs.handle import Handle
from app.jobs.job import Busy, Job
from app.models import ModelFacts

LOADING = "The model is still loading. Type what you would like to see; it can be made in a moment."


class Loading:
    """Looks like the backend that `start` gives, once it has; until then, everything asked of it is Busy.

    Loading happens in a thread of its own; `wait` tells how it went.
    """

    def __init__(self, start: Callable[[], Backend]) -> None:
        self._backend: Backend | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._load, args=[start], name="loading", daemon=True)
        self._thread.start()

    def wait(self) -> Backend:
        """Wait for the backend and give it. Raises what `start` raised."""
        self._thread.join()
        if self._error:
            raise self._error
        assert self._backend
        return self._backend

    @property
    def speculates(self) -> bool:
        return self._backend is not None and self._backend.speculates

    @property
    def facts(self) -> ModelFacts:
        """See `Backend`. Raises Busy while the model is loading."""
        return self._there().facts

    @property
    def healthy(self) -> bool:
        return self._backend.healthy if self._backend else self._error is None

    def submit(self, job: Job) -> Handle:
        """See `Backend`. Raises Busy while the model is loading."""
        return self._there().submit(job)

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """See `submit`."""
        return self._there().submit_all(jobs)

    def cancel_owner(self, owner: str) -> None:
        if self._backend:
            self._backend.cancel_owner(owner)

    def close(self) -> None:
        """See `Backend`; what is still loading is closed as soon as it is there."""
        with self._lock:
            self._closed = True
        if self._backend:
            self._backend.close()

    def _there(self) -> Backend:
        if self._backend is None:
            raise Busy(LOADING)
        return self._backend

    def _load(self, start: Callable[[], Backend]) -> None:
        try:
            backend = start()
        # Whatever it is, whoever waits is told; see `wait`.
        except BaseException as error:
            self._error = error
            return
        with self._lock:
            self._backend = backend
            closed = self._closed
        if closed:
            backend.close()

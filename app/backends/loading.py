"""A backend that loads its model in a thread, so that the page can be served meanwhile."""

import threading
from collections.abc import Callable, Sequence

from app.backends.base import Backend
from app.jobs.handle import Handle
from app.jobs.job import Busy, Job
from app.models import ModelFacts

LOADING = "The model is still loading. Type your prompt; pictures can be made in a moment."


class Loading:
    """The backend that `start` returns; until it has returned, all requests raise Busy.

    `start` runs in a thread; `wait` returns its result or raises its error.
    """

    def __init__(self, start: Callable[[], Backend]) -> None:
        self._backend: Backend | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._load, args=[start], name="loading", daemon=True)
        self._thread.start()

    def wait(self) -> Backend:
        """Wait for the backend and return it; raise what `start` raised."""
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
        return self._loaded().facts

    @property
    def healthy(self) -> bool:
        return self._backend.healthy if self._backend else self._error is None

    def submit(self, job: Job) -> Handle:
        """See `Backend`. Raises Busy while the model is loading."""
        return self._loaded().submit(job)

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """See `submit`."""
        return self._loaded().submit_all(jobs)

    def cancel_owner(self, owner: str) -> None:
        if self._backend:
            self._backend.cancel_owner(owner)

    def close(self) -> None:
        """Close the backend; one that is still loading is closed once it is loaded."""
        with self._lock:
            self._closed = True
        if self._backend:
            self._backend.close()

    def _loaded(self) -> Backend:
        if self._backend is None:
            raise Busy(LOADING)
        return self._backend

    def _load(self, start: Callable[[], Backend]) -> None:
        try:
            backend = start()
        # `wait` raises it, whatever it is.
        except BaseException as error:
            self._error = error
            return
        with self._lock:
            self._backend = backend
            closed = self._closed
        if closed:
            backend.close()

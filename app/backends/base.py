"""The interface through which page and API have pictures made."""

from collections.abc import Sequence
from typing import Protocol

from app.jobs.handle import Handle
from app.jobs.job import Job
from app.models import ModelFacts


class Backend(Protocol):
    """Makes pictures: `app.worker.Worker` in this process, or another module of app/backends elsewhere."""

    @property
    def speculates(self) -> bool:
        """Whether it accepts speculative jobs."""
        ...

    @property
    def facts(self) -> ModelFacts:
        """Metadata of the model that it runs."""
        ...

    @property
    def healthy(self) -> bool:
        """Whether it can make pictures, judged by its latest steps."""
        ...

    def submit(self, job: Job) -> Handle:
        """Queue a job and return at once; follow it through its handle.

        Raises:
            RequestError: the model cannot make it, see `ModelFacts.plan`.
            Busy: it would have to wait for too long.
        """
        ...

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """Queue several jobs that start together, such as a grid; all or none are accepted, see `submit`."""
        ...

    def cancel_owner(self, owner: str) -> None:
        """Cancel all jobs of an owner, running or waiting."""
        ...

    def close(self) -> None:
        """Cancel all jobs and release the model."""
        ...


class BackendWrapper:
    """Forwards all calls to another backend; subclasses override some."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def speculates(self) -> bool:
        return self._backend.speculates

    @property
    def facts(self) -> ModelFacts:
        return self._backend.facts

    @property
    def healthy(self) -> bool:
        return self._backend.healthy

    def submit(self, job: Job) -> Handle:
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        return self._backend.submit_all(jobs)

    def cancel_owner(self, owner: str) -> None:
        self._backend.cancel_owner(owner)

    def close(self) -> None:
        self._backend.close()

"""Refining what somebody is likely to pick, while they still look: guesses that cost nobody any time."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from app.backends.base import Backend
from app.jobs.handle import Handle
from app.jobs.job import Job, RequestError


class Guesses:
    """The speculative refinements of one grid.

    They run at the lowest priority, each only part of the way (`app.worker.scheduling.SPECULATED_SHARE`), and end
    with the grid, so that what is wasted stays within bounds.
    """

    def __init__(self, handles: Mapping[Job, Handle] | None = None) -> None:
        self._handles = dict(handles or {})

    @classmethod
    def begin(cls, worker: Backend, refinements: Sequence[Job]) -> "Guesses":
        """Guess at these refinements; at none where the backend does not speculate, or has no room."""
        if not worker.speculates:
            return cls()
        try:
            handles = worker.submit_all([replace(job, kind="speculative") for job in refinements])
        except RequestError:
            return cls()
        return cls(dict(zip(refinements, handles, strict=True)))

    def favour(self, preview: Job) -> None:
        """Somebody points at this preview: it is the likely one."""
        for job, handle in self._handles.items():
            if (job.seed, job.variation) == (preview.seed, preview.variation):
                handle.favour()

    def take(self, refinement: Job) -> Handle | None:
        """The guess at this very refinement, now wanted, with the steps that it has made; the others end."""
        handle = self._handles.pop(refinement, None)
        self.drop()
        if handle:
            handle.promote()
        return handle

    def drop(self) -> None:
        """End them all."""
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()

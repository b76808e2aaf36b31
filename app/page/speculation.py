"""Refine previews while the user still looks at them: one is likely to be picked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from app.backends.base import Backend
from app.jobs.handle import Handle
from app.jobs.job import Job, RequestError


class Guesses:
    """The speculative refinements of one grid.

    They have the lowest priority, go only part of the way (`app.worker.scheduling.SPECULATED_SHARE`) and end
    with the grid, so that little is wasted.
    """

    def __init__(self, handles: Mapping[Job, Handle] | None = None) -> None:
        self._handles = dict(handles or {})

    @classmethod
    def begin(cls, backend: Backend, refinements: Sequence[Job]) -> "Guesses":
        """Begin these refinements, unless the backend does not speculate or has no room."""
        if not backend.speculates:
            return cls()
        try:
            handles = backend.submit_all([replace(job, kind="speculative") for job in refinements])
        except RequestError:
            return cls()
        return cls(dict(zip(refinements, handles, strict=True)))

    def favour(self, preview: Job) -> None:
        """Put the refinement of this preview first: the user points at it."""
        for job, handle in self._handles.items():
            if (job.seed, job.variation) == (preview.seed, preview.variation):
                handle.favour()

    def take(self, refinement: Job) -> Handle | None:
        """Return this refinement, promoted, with the steps it has made, if it was begun; end the others."""
        handle = self._handles.pop(refinement, None)
        self.drop()
        if handle:
            handle.promote()
        return handle

    def drop(self) -> None:
        """End all."""
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()

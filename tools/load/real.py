"""The real clock: the app's worker in real time."""

import heapq
import time
from collections.abc import Callable, Sequence
from itertools import count
from queue import Empty, SimpleQueue

from app.jobs.handle import Handle
from app.jobs.job import LAST_EVENTS, Cancelled, Done, Event, Job, Kind, RequestError, Step
from app.page.prompts import EXAMPLES
from app.worker import Worker
from tools.load.visitors import FULL_STEPS, PREVIEW_STEPS, Ending, Picture

SOLVERS: dict[Kind, tuple[str, int]] = {
    "preview": ("consistency", PREVIEW_STEPS),
    "refine": ("dpm++2m", FULL_STEPS),
    "speculative": ("dpm++2m", FULL_STEPS),
}


class RealClock:
    """A `Clock` on which a worker makes the pictures; timers and endings are handled in `run`'s thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._began = time.perf_counter()
        self._inbox: SimpleQueue[tuple[Handle, Event]] = SimpleQueue()
        self._ended: dict[Handle, Callable[[Picture, Ending], None]] = {}
        self._steps: dict[Handle, int] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    @property
    def now(self) -> float:
        return time.perf_counter() - self._began

    @property
    def ticks(self) -> int:
        return self._worker.ticks

    def call_at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time, next(self._order), action))

    def submit(
        self, kind: Kind, owner: str, seeds: Sequence[int], ended: Callable[[Picture, Ending], None]
    ) -> list[Picture] | None:
        facts, (solver, steps) = self._worker.facts, SOLVERS[kind]
        prompt = EXAMPLES[seeds[0] // 1000 % len(EXAMPLES)]
        jobs = [
            Job(kind, prompt, seed, steps, facts.name, facts.width, facts.height, solver=solver, owner=owner)
            for seed in seeds
        ]
        try:
            handles = self._worker.submit_all(jobs)
        except RequestError:
            return None
        for handle in handles:
            self._ended[handle] = ended
            handle.listen(self._inbox)
        return list(handles)

    def cancel(self, picture: Picture) -> None:
        picture.cancel()

    def promote(self, picture: Picture) -> int:
        picture.promote()
        return FULL_STEPS if picture.ended else self._steps.get(picture, 0)

    def run(self, until: float = float("inf")) -> None:
        """Run until no timers and pictures are left, or until a time; then cancel the rest."""
        while self.now < until and (self._timers or self._ended):
            self._wait(min(self._timers[0][0] if self._timers else until, until))
        for handle in self._ended:
            handle.cancel()

    def _wait(self, end: float) -> None:
        # Handles the first timer if it is due, or else the first event before `end`.
        if self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()
            return
        try:
            timeout = None if end == float("inf") else max(0.0, end - self.now)
            handle, event = self._inbox.get(timeout=timeout)
        except Empty:
            return
        if isinstance(event, Step):
            self._steps[handle] = event.step
        elif isinstance(event, LAST_EVENTS):
            self._steps.pop(handle, None)
            endings: dict[type, Ending] = {Done: "done", Cancelled: "cancelled"}
            self._ended.pop(handle)(handle, endings.get(type(event), "failed"))

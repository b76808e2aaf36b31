"""The unfinished pictures: who is admitted, who waits where in line, and who takes the next step."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from app.jobs.handle import Handle
from app.jobs.job import Busy, Kind, Queued, RequestError
from app.worker.costs import Costs
from app.worker.sample import Sample
from app.worker.scheduling import Forecast, SchedulingPolicy, Ticket

# Limit on the wait before a job begins, by its kind; a longer wait is refused at once.
LONGEST_WAIT_S: Mapping[Kind, float] = {"preview": 30, "refine": 180}
# Limit on unfinished pictures of all kinds.
MAX_PICTURES = 1000
# Limit on the steps that one owner waits for: two of the largest grids. A first request is never too large.
MAX_OPEN_STEPS = 1600


class SampleQueue:
    """The samples from their admission to their end. Safe to use from any thread.

    Args:
        policy: decides who goes first.
        costs: what ticks cost on this device, at first.
        longest_wait_s: by kind of job, the wait beyond which it is refused.

    Attributes:
        costs: the current costs of ticks; the worker updates them after each tick.
    """

    def __init__(
        self, policy: SchedulingPolicy, costs: Costs, longest_wait_s: Mapping[Kind, float] = LONGEST_WAIT_S
    ) -> None:
        self.costs = costs
        self._policy, self._longest_wait_s = policy, longest_wait_s
        self._samples: dict[Handle, Sample] = {}
        self._closed = False
        self._changed = threading.Condition()

    def add(self, samples: Sequence[Sample]) -> None:
        """Admit all of these samples, or none.

        Raises Busy where there is no room for them (`check_room`), and RequestError once it is closed.
        """
        with self._changed:
            if self._closed:
                raise RequestError("The app is shutting down.")
            new = [sample.ticket() for sample in samples]
            check_room(self._tickets(), new, self._policy, self.costs, self._longest_wait_s)
            self._samples |= {sample.handle: sample for sample in samples}
            self._tell_places()
            self._changed.notify_all()

    def update(self, handle: Handle, **values: Any) -> None:
        """Set fields of a job's sample; does nothing for one that has ended."""
        with self._changed:
            if sample := self._samples.get(handle):
                vars(sample).update(values)
                self._changed.notify_all()

    def cancel(self, which: Callable[[Sample], bool]) -> None:
        """Mark samples as cancelled; `next_batch` hands them out."""
        with self._changed:
            for sample in filter(which, self._samples.values()):
                sample.cancelled = True
            self._changed.notify_all()

    def close(self) -> None:
        """Cancel everything and admit nothing more."""
        with self._changed:
            self._closed = True
            self.cancel(lambda sample: True)

    def next_batch(self, max_rows: int | None) -> tuple[list[Sample], list[Sample]]:
        """Wait for work. Returns the samples of the next tick, and the cancelled ones, which leave the queue.

        Both are empty once the queue is closed and has nothing left.
        """
        with self._changed:
            while True:
                waiting = {s.number: s for s in self._samples.values() if not s.cancelled}
                tickets = [sample.ticket() for sample in waiting.values()]
                chosen = self._policy.choose(tickets, self.costs, max_rows)
                cancelled = [sample for sample in self._samples.values() if sample.cancelled]
                self.remove(cancelled)
                if chosen or cancelled or self._closed:
                    return [waiting[ticket.number] for ticket in chosen], cancelled
                self._changed.wait()

    def remove(self, samples: Iterable[Sample]) -> None:
        """Forget samples that have ended, and tell those that wait their new places."""
        with self._changed:
            before = len(self._samples)
            for sample in samples:
                self._samples.pop(sample.handle, None)
            if len(self._samples) < before:
                self._tell_places()

    def started(self) -> list[Sample]:
        """The samples that have begun."""
        with self._changed:
            return [sample for sample in self._samples.values() if sample.started]

    def awaited(self) -> int:
        """How many samples somebody waits for, which leaves out speculative ones."""
        with self._changed:
            return sum(sample.kind != "speculative" for sample in self._samples.values())

    def forecast(self) -> dict[int, Forecast]:
        """What each sample has to expect, by its number."""
        with self._changed:
            return self._policy.forecast(self._tickets(), self.costs)

    def _tickets(self) -> list[Ticket]:
        return [sample.ticket() for sample in self._samples.values()]

    def _tell_places(self) -> None:
        """Tell the samples that have not begun where they stand, where that has changed."""
        expected = self.forecast()
        for sample in self._samples.values():
            now = expected[sample.number]
            if not sample.started and sample.place != now.place:
                sample.place = now.place
                sample.handle.tell(Queued(now.place, now.seconds))


def check_room(
    waiting: Sequence[Ticket],
    new: Sequence[Ticket],
    policy: SchedulingPolicy,
    costs: Costs,
    longest_wait_s: Mapping[Kind, float] = LONGEST_WAIT_S,
) -> None:
    """Raise Busy if the tickets of a new request can't join those that are waiting.

    There may be MAX_PICTURES, an owner may wait for MAX_OPEN_STEPS apart from guesses, and no wait may be too
    long.
    """
    if len(waiting) + len(new) > MAX_PICTURES:
        raise Busy(f"{len(waiting)} pictures are in line. Please try again in a minute.")
    kind, owner = new[0].kind, new[0].owner
    if kind != "speculative":
        open_steps = sum(t.steps_left for t in waiting if t.owner == owner and t.kind != "speculative")
        if open_steps and open_steps + sum(t.steps for t in new) > MAX_OPEN_STEPS:
            raise Busy(
                f"Your pictures in line still need {open_steps} steps; with these they would need more than "
                f"{MAX_OPEN_STEPS}. Wait for some of them, or cancel them."
            )
    expected = policy.forecast([*waiting, *new], costs)
    wait_s = max(expected[t.number].wait_s for t in new)
    if wait_s > longest_wait_s.get(kind, float("inf")):
        raise Busy(
            f"Too many people are waiting: this could not begin before {wait_s:.0f} s have passed. "
            "Please try again in a minute."
        )

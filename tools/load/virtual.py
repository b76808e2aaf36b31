"""The virtual clock: the worker's scheduling decisions with the costs of ticks, without computing
pictures."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

from app.jobs.job import KINDS, Busy, Kind
from app.worker.costs import Costs
from app.worker.loop import SKETCH_SHARE
from app.worker.queue import check_room
from app.worker.scheduling import SchedulingPolicy, Ticket
from tools.load.figures import ROWS
from tools.load.visitors import FULL_STEPS, PREVIEW_STEPS, Ending, Picture


@dataclass
class _Making:
    ticket: Ticket
    ended: Callable[[Picture, Ending], None]
    stepped: float
    arrived: float
    cancelled: bool = False
    guessed: int = 0
    sketch_budget_s: float = 0.0  # see `Sample`


class VirtualClock:
    """A `Clock` on which only the decisions are made, and calls take a given time.

    Args:
        costs: the calibration to start from; the clock learns from its calls as the worker does.
        call_s: seconds of a call by its rows; by default what `costs` say.

    Attributes:
        costs: as learned so far.
        made: steps by kind; steps of cancelled guesses as "wasted", as in `Worker.made`.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        costs: Costs,
        call_s: Callable[[int], float] | None = None,
    ) -> None:
        self.now = 0.0
        self.ticks = 0
        self.made = dict.fromkeys((*KINDS, "wasted"), 0)
        self.costs = costs
        self._policy, self._call_s = policy, call_s or costs.tick
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._requests = count()
        self._making: dict[int, _Making] = {}

    def call_at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (max(time, self.now), next(self._order), action))

    def submit(
        self, kind: Kind, owner: str, seeds: Sequence[int], ended: Callable[[Picture, Ending], None]
    ) -> list[Picture] | None:
        steps = PREVIEW_STEPS if kind == "preview" else FULL_STEPS
        request = next(self._requests)
        numbers = [next(self._order) for _ in seeds]
        new = [Ticket(number, request, kind, owner, steps, steps, ROWS) for number in numbers]
        try:
            check_room(self._tickets(), new, self._policy, self.costs)
        except Busy:
            return None
        for ticket in new:
            self._making[ticket.number] = _Making(ticket, ended, self.now, self.now)
        return list(numbers)

    def cancel(self, picture: Picture) -> None:
        if picture in self._making:
            self._making[picture].cancelled = True

    def promote(self, picture: Picture) -> int:
        making = self._making.get(picture)
        if making is None:
            return FULL_STEPS
        making.ticket = replace(making.ticket, kind="refine")
        return making.guessed

    def run(self, until: float = float("inf")) -> None:
        """Run until no timers and pictures are left, or until a time."""
        while self.now < until:
            self._drop_cancelled()
            tickets = self._tickets()
            batch = self._policy.choose(tickets, self.costs)
            if batch:
                alone = len(batch) == sum(t.kind != "speculative" for t in tickets)
                self._pass_time(self.now + self._seconds(batch, watched=alone))
                self._advance(batch)
            elif self._timers:
                self._pass_time(self._timers[0][0])
            else:
                return

    def _tickets(self) -> list[Ticket]:
        return [
            replace(making.ticket, idle_s=self.now - making.stepped, age_s=self.now - making.arrived)
            for making in self._making.values()
        ]

    def _drop_cancelled(self) -> None:
        for number in [number for number, making in self._making.items() if making.cancelled]:
            making = self._making.pop(number)
            self.made["wasted"] += making.guessed
            making.ended(number, "cancelled")

    def _seconds(self, batch: Sequence[Ticket], watched: bool) -> float:
        """Return the seconds of a tick: its call, new prompts, and decoded pictures and sketches."""
        rows = sum(t.rows for t in batch)
        call = self._call_s(rows)
        self.costs = self.costs.learn(rows, call)
        beginning = len({t.request for t in batch if t.steps_left == t.steps})
        finished = sum(t.steps_left == 1 for t in batch)
        shown = self._sketches(batch, call) if watched and batch[0].kind != "speculative" else 0
        return call + beginning * self.costs.encode_s + (finished + shown) * self.costs.decode_s

    def _sketches(self, batch: Sequence[Ticket], call: float) -> int:
        """Return the number of sketches made with a call, limited to SKETCH_SHARE of the time."""
        shown = 0
        for t in batch:
            making = self._making[t.number]
            if making.sketch_budget_s >= self.costs.decode_s:
                making.sketch_budget_s = 0.0
                shown += t.steps_left > 1
            making.sketch_budget_s += SKETCH_SHARE * call / len(batch)
        return shown

    def _pass_time(self, end: float) -> None:
        while self._timers and self._timers[0][0] <= end:
            self.now, _, action = heapq.heappop(self._timers)
            action()
        self.now = end

    def _advance(self, batch: Sequence[Ticket]) -> None:
        self.ticks += 1
        for t in batch:
            making = self._making[t.number]
            self.made[making.ticket.kind] += 1
            making.guessed += making.ticket.kind == "speculative"
            making.ticket = replace(making.ticket, steps_left=making.ticket.steps_left - 1)
            making.stepped = self.now
            if making.ticket.steps_left == 0:
                del self._making[t.number]
                making.ended(t.number, "done")

"""The compared scheduling policies, from first come, first served to the app's."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.worker.costs import Costs
from app.worker.scheduling import SchedulingPolicy, Ticket, fill


@dataclass(frozen=True)
class Rung(SchedulingPolicy):
    """The app's policy without some of its rules.

    Attributes:
        every_step: pictures join and leave at every step; otherwise a batch, once begun, runs to its end.
        mixed: a batch may hold several requests; otherwise one.
        by_kind: previews before refinements before speculation; otherwise in order of arrival.
        speculates: likely picks are refined in idle time.
    """

    every_step: bool = True
    mixed: bool = True
    by_kind: bool = True
    speculates: bool = False

    def line_up(self, tickets: Sequence[Ticket], costs: Costs) -> list[Ticket]:
        if self.by_kind:
            return super().line_up(tickets, costs)
        return sorted(tickets, key=lambda t: t.number)

    def choose(self, tickets: Sequence[Ticket], costs: Costs, max_rows: int | None = None) -> list[Ticket]:
        if self.every_step and self.by_kind:
            return super().choose(tickets, costs, max_rows)
        ready = [t for t in tickets if t.ready]
        if not self.every_step and (begun := [t for t in ready if t.steps_left < t.steps]):
            return begun
        line = self.line_up(ready, costs)
        return fill([t for t in line if self._goes_with(t, line[0])], costs, max_rows)

    def _goes_with(self, t: Ticket, first: Ticket) -> bool:
        # Without `every_step`, all pictures of a batch must also end together.
        return (
            t.shape == first.shape
            and (self.mixed or t.request == first.request)
            and (self.every_step or (t.steps_left, t.kind) == (first.steps_left, first.kind))
            and (not self.by_kind or t.kind == first.kind)
        )


# Name in the report → policy.
POLICIES: dict[str, SchedulingPolicy] = {
    "fifo": Rung(every_step=False, mixed=False, by_kind=False),
    "batch": Rung(every_step=False, by_kind=False),
    "priority": Rung(every_step=False),
    "step-fifo": Rung(by_kind=False),
    "step-priority": Rung(),
    "speculative": SchedulingPolicy(),
}

"""Who goes next, and how long it takes: the worker's decisions, as pure functions over tickets.

The worker and the simulator (app/load) both decide by this module and by nothing else.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from app.jobs.job import KINDS, Kind
from app.worker.costs import Costs

# A tick of previews that leaves no preview waiting may take this much longer to carry refinements along.
CARRYING = 0.25
# After so long without a step the first refinement in line and the first late preview go along in any case:
# no flood of previews starves them. One of each alone: with more, all that wait would slow down all.
PATIENCE_S = 1.0
# A preview is late when it takes more than so many times what its steps take in full batches.
LATE = 3.0
# Unless it is favoured, a speculative refinement is taken this far: most are wasted, and what is left
# is quick to do.
SPECULATED_SHARE = 0.75


@dataclass(frozen=True)
class SchedulingPolicy:
    """How the next batch is put together.

    every_step: pictures join and leave at every step; otherwise a batch, once begun, runs to its end.
    mixed: a batch may hold several requests; otherwise one.
    by_kind: previews before refinements before speculation; otherwise in order of arrival.
    speculate: while somebody looks at previews, refine the likely picks in what would be idle time.
    """

    every_step: bool = True
    mixed: bool = True
    by_kind: bool = True
    speculate: bool = False


POLICIES = {
    "fifo": SchedulingPolicy(every_step=False, mixed=False, by_kind=False),
    "batch": SchedulingPolicy(every_step=False, by_kind=False),
    "priority": SchedulingPolicy(every_step=False),
    "step-fifo": SchedulingPolicy(by_kind=False),
    "step-priority": SchedulingPolicy(),
    "speculative": SchedulingPolicy(speculate=True),
}
"""The ladder from what everybody does to what the app does, by the names that reports use."""


@dataclass(frozen=True)
class Ticket:
    """What the schedule needs to know of one unfinished picture.

    number: order of arrival, unique. request: what it was asked for with, such as its grid. steps: denoiser
    calls from noise to picture. steps_left: those it still needs. rows: batch rows of one such call (two with
    classifier-free guidance). shape: what must be equal within a batch, such as the model and the latent
    shape. favoured: see `Handle.favour`. idle_s: how long ago its last step was, or its arrival.
    age_s: how long ago it arrived.
    """

    number: int
    request: int
    kind: Kind
    owner: str
    steps: int
    steps_left: int
    rows: int
    shape: Hashable = None
    favoured: bool = False
    idle_s: float = 0.0
    age_s: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether it may go on: a guess that was taken far enough waits until it is promoted."""
        if self.kind != "speculative" or self.favoured:
            return True
        return self.steps - self.steps_left < SPECULATED_SHARE * self.steps


def line_up(
    tickets: Sequence[Ticket], policy: SchedulingPolicy, costs: Costs, pace: float = 1.0
) -> list[Ticket]:
    """The tickets in the order in which they are served.

    In order of arrival, or previews before refinements before speculation. Previews that need not be LATE go
    before those that must: else, with too many of them, all would be. Then owners take turns, request by
    request, so one person's eight grids don't hold up another's first; speculation is served to all alike,
    the favoured first and those with the fewest steps made next.

    pace: how much longer than `costs` say things take at present.
    """
    if not policy.by_kind:
        return sorted(tickets, key=lambda t: t.number)
    turns: dict[tuple[Kind, str, int], int] = {}
    asked: Counter[tuple[Kind, str]] = Counter()
    for t in sorted(tickets, key=lambda t: t.number):
        if (t.kind, t.owner, t.request) not in turns:
            turns[t.kind, t.owner, t.request] = asked[t.kind, t.owner]
            asked[t.kind, t.owner] += 1

    def rank(t: Ticket) -> tuple:
        if t.kind == "speculative":
            return (KINDS.index(t.kind), not t.favoured, t.steps - t.steps_left, t.number)
        return (KINDS.index(t.kind), _is_late(t, costs, pace), turns[t.kind, t.owner, t.request], t.number)

    return sorted(tickets, key=rank)


def choose(
    tickets: Sequence[Ticket],
    policy: SchedulingPolicy,
    costs: Costs,
    running: Collection[int] = (),
    most_rows: int | None = None,
    pace: float = 1.0,
) -> list[Ticket]:
    """The tickets of the next tick; none when there is nothing to do.

    The first in line decides shape and kind, and those of its kind go along as far as the batch reaches.
    With previews go the first late preview and the first refinement if they have lost their patience and,
    where no preview is left waiting, more refinements while they lengthen the tick by no more than CARRYING.
    Speculation goes alone.

    running: the numbers of the last tick's tickets. most_rows: where memory is short, fewer than the knee.
    pace: as in `line_up`.
    """
    ready = [t for t in tickets if t.ready]
    if not policy.every_step:
        begun = [t for t in ready if t.number in running]
        if begun:
            return begun
    line = line_up(ready, policy, costs, pace)
    if not line:
        return []
    first = line[0]
    fitting = [t for t in line if _goes_with(t, first, policy)]
    chosen = _fill(fitting, min(most_rows or costs.knee, costs.knee))
    if policy.every_step and policy.by_kind and first.kind == "preview":
        refinements = [t for t in line if t.kind == "refine" and t.shape == first.shape]
        waiting = fitting[len(chosen) :]
        late = [t for t in waiting if _is_late(t, costs, pace)]
        impatient = [t for t in (*late[:1], *refinements[:1]) if t.idle_s > PATIENCE_S]
        others = [] if waiting else [t for t in refinements if t not in impatient]
        chosen += _carried(impatient, others, chosen, costs, most_rows)
    return chosen


@dataclass(frozen=True)
class Forecast:
    """Where a ticket stands: `place` tickets go first, which takes about `wait_s` seconds, and in about
    `seconds` it is done and decoded."""

    place: int
    wait_s: float
    seconds: float


def forecast(
    tickets: Sequence[Ticket], policy: SchedulingPolicy, costs: Costs, pace: float = 1.0
) -> dict[int, Forecast]:
    """What each ticket, by its number, has to expect if nobody else comes.

    All that goes before it is done first, in batches of its kind and shape as large as there is enough for,
    and what was asked for together is done together. No picture is faster than its own steps one by one.
    pace: as in `line_up`.
    """
    line = line_up(tickets, policy, costs, pace)
    together: Counter[tuple[Hashable, Kind]] = Counter()
    for t in line:
        together[t.shape, t.kind] += t.rows
    seconds = 0.0
    before: dict[int, float] = {}
    until: dict[int, float] = {}
    for t in line:
        batch = min(together[t.shape, t.kind], costs.knee)
        before.setdefault(t.request, seconds)
        seconds += pace * t.steps_left * t.rows * costs.tick(batch) / batch
        until[t.request] = seconds
    return {
        t.number: Forecast(
            place,
            before[t.request],
            max(until[t.request], t.steps_left * pace * costs.tick(t.rows)) + costs.decode_s,
        )
        for place, t in enumerate(line)
    }


def _goes_with(t: Ticket, first: Ticket, policy: SchedulingPolicy) -> bool:
    """Whether `t` may be in a batch that `first` opens; without joining later, all must end together."""
    return (
        t.shape == first.shape
        and (policy.mixed or t.request == first.request)
        and (policy.every_step or (t.steps_left, t.kind) == (first.steps_left, first.kind))
        and (not policy.by_kind or t.kind == first.kind)
    )


def _fill(line: Sequence[Ticket], room: int) -> list[Ticket]:
    """The first of the line that fit into `room` rows; one at least."""
    chosen: list[Ticket] = []
    for t in line:
        room -= t.rows
        if chosen and room < 0:
            break
        chosen.append(t)
    return chosen


def _is_late(t: Ticket, costs: Costs, pace: float) -> bool:
    step_s = pace * costs.tick(costs.knee)
    return t.kind == "preview" and t.age_s + t.steps_left * step_s > LATE * t.steps * step_s


def _carried(
    impatient: Sequence[Ticket],
    others: Sequence[Ticket],
    previews: Sequence[Ticket],
    costs: Costs,
    most_rows: int | None,
) -> list[Ticket]:
    """Those that go along with the previews of a tick, see `choose`: `others` only while there is time."""
    rows = sum(t.rows for t in previews)
    longest_s = (1 + CARRYING) * costs.tick(rows)
    carried: list[Ticket] = []
    for t in (*impatient, *others):
        rows += t.rows
        in_time = costs.tick(rows) <= longest_s
        if not (in_time or t in impatient) or rows > (most_rows or rows):
            break
        carried.append(t)
    return carried

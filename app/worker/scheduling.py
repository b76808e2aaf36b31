"""Decide which pictures take the next step, and estimate how long each will take.

Pure functions of tickets, used by the worker and by the virtual clock of `tools.load`.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil

from app.jobs.job import KINDS, Kind
from app.worker.costs import Costs

# A tick of previews that leaves no preview waiting may take this much longer to carry refinements along.
CARRYING = 0.25
# After so long without a step the first refinement in line and the first late preview go along in any case,
# so that no flood of previews starves them. One of each only: with more, everybody would wait longer.
PATIENCE_S = 1.0
# A preview is late when it takes more than so many times what its steps take in full batches. One that has
# not begun is late earlier: without time to spare it is given up half-way, and its steps were for nothing.
LATE, LATE_TO_BEGIN = 3.2, 2.6
# A request takes a turn of its owner for each so many rows times steps: eight previews of 12 steps or one
# picture of 100, with guidance, are one turn. A larger request waits until others have had theirs.
TURN = 200
# A speculative refinement that is not favoured stops at this share of its steps: most are never picked, and
# the rest is quickly done.
SPECULATED_SHARE = 0.75


@dataclass(frozen=True)
class Ticket:
    """The facts about one unfinished picture that scheduling needs.

    Attributes:
        number: order of arrival, unique.
        request: number of the request (such as a grid) that it belongs to.
        kind: preview, refine or speculative.
        owner: the person it is for.
        steps: denoiser calls from noise to picture.
        steps_left: denoiser calls still needed.
        rows: batch rows of one call: two with classifier-free guidance, in proportion to its pixels.
        shape: must be equal within a batch, such as model and latent shape.
        favoured: see `Handle.favour`.
        idle_s: seconds since its last step, or since its arrival.
        age_s: seconds since its arrival.
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
        """Whether it may take a step: a speculative one waits at SPECULATED_SHARE until it is promoted."""
        if self.kind != "speculative" or self.favoured:
            return True
        return self.steps - self.steps_left < SPECULATED_SHARE * self.steps


@dataclass(frozen=True)
class Forecast:
    """Estimate for one ticket if nobody else comes.

    Attributes:
        place: how many tickets are served before it.
        wait_s: seconds until its request begins.
        seconds: seconds until it is finished and decoded.
    """

    place: int
    wait_s: float
    seconds: float


class SchedulingPolicy:
    """The app's rules: previews before refinements before speculation, a new batch at every step.

    `tools.load.policies` has the simpler rules that these are compared with.

    Attributes:
        speculates: whether likely picks are refined in what would be idle time.
    """

    speculates: bool = True

    def line_up(self, tickets: Sequence[Ticket], costs: Costs) -> list[Ticket]:
        """Sort the tickets into the order in which they are served.

        Previews that can still be in time (see LATE) go before late ones: otherwise, under too much load, all
        would be late. Within a kind owners take turns, so that neither one person's eight grids nor one huge
        grid holds up another's first. Of speculative tickets the favoured go first, then those with the
        fewest steps done, of any owner.
        """
        turns, late = _turns(tickets), late_requests(tickets, costs)

        def rank(t: Ticket) -> tuple:
            if t.kind == "speculative":
                return (KINDS.index(t.kind), not t.favoured, t.steps - t.steps_left, t.number)
            return (KINDS.index(t.kind), t.request in late, turns[t.kind, t.owner, t.request], t.number)

        return sorted(tickets, key=rank)

    def choose(self, tickets: Sequence[Ticket], costs: Costs, max_rows: int | None = None) -> list[Ticket]:
        """Choose the tickets of the next tick; none when there is nothing to do.

        The first in line decides shape and kind, and others of that kind fill the batch up to the knee, or
        now and then to a size next to it (`Costs.room`). With previews go the first late preview and the
        first refinement that have been idle for PATIENCE_S and, where no preview is left waiting, more
        refinements while they lengthen the tick by at most CARRYING.

        Args:
            max_rows: where memory is short, fewer rows than the knee.
        """
        line = self.line_up([t for t in tickets if t.ready], costs)
        if not line:
            return []
        first = line[0]
        alike = [t for t in line if (t.shape, t.kind) == (first.shape, first.kind)]
        batch = fill(alike, costs, max_rows)
        if first.kind == "preview":
            waiting = alike[len(batch) :]
            late_ones = late_requests(line, costs)
            late = [t for t in waiting if t.request in late_ones]
            refinements = [t for t in line if t.kind == "refine" and t.shape == first.shape]
            impatient = [t for t in (*late[:1], *refinements[:1]) if t.idle_s > PATIENCE_S]
            others = [] if waiting else [t for t in refinements if t not in impatient]
            batch += _carried(impatient, others, batch, costs, max_rows)
        return batch

    def forecast(self, tickets: Sequence[Ticket], costs: Costs) -> dict[int, Forecast]:
        """Estimate for each ticket, by its number, what it has to expect if nobody else comes.

        Everything before it is finished first, in batches of its kind and shape as large as there is enough
        for, and a request is finished as a whole. No picture is faster than its own steps one by one.
        """
        line = self.line_up(tickets, costs)
        rows: Counter[tuple[Hashable, Kind]] = Counter()
        for t in line:
            rows[t.shape, t.kind] += t.rows
        row_s = {
            group: costs.tick(batch) / batch
            for group, count in rows.items()
            if (batch := min(count, costs.knee))
        }
        alone_s = {count: costs.tick(count) for count in {t.rows for t in line}}
        seconds = 0.0
        begin: dict[int, float] = {}
        end: dict[int, float] = {}
        for t in line:
            begin.setdefault(t.request, seconds)
            seconds += t.steps_left * t.rows * row_s[t.shape, t.kind]
            end[t.request] = seconds
        return {
            t.number: Forecast(
                place,
                begin[t.request],
                max(end[t.request], t.steps_left * alone_s[t.rows]) + costs.decode_s,
            )
            for place, t in enumerate(line)
        }


def late_requests(tickets: Sequence[Ticket], costs: Costs) -> set[int]:
    """The requests of previews that can't be in time, as a whole: see LATE."""
    step_s = costs.tick(costs.knee)
    left: dict[int, int] = {}
    begun: set[int] = set()
    for t in tickets:
        left[t.request] = max(left.get(t.request, 0), t.steps_left)
        if t.steps_left < t.steps:
            begun.add(t.request)
    return {
        t.request
        for t in tickets
        if t.kind == "preview"
        and t.age_s + left[t.request] * step_s
        > (LATE if t.request in begun else LATE_TO_BEGIN) * t.steps * step_s
    }


def fill(line: Sequence[Ticket], costs: Costs, max_rows: int | None) -> list[Ticket]:
    """The first of the line that fit into a call; one at least."""
    room = costs.room(sum(t.rows for t in line))
    room = min(max_rows or room, room)
    batch: list[Ticket] = []
    for t in line:
        room -= t.rows
        if batch and room < 0:
            break
        batch.append(t)
    return batch


def _turns(tickets: Sequence[Ticket]) -> dict[tuple[Kind, str, int], int]:
    """How many turns (see TURN) of the same owner and kind end before each request."""
    work: Counter[tuple[Kind, str, int]] = Counter()
    for t in sorted(tickets, key=lambda t: t.number):
        work[t.kind, t.owner, t.request] += t.steps * t.rows
    turns: dict[tuple[Kind, str, int], int] = {}
    taken: Counter[tuple[Kind, str]] = Counter()
    for (kind, owner, request), amount in work.items():
        taken[kind, owner] += ceil(amount / TURN)
        turns[kind, owner, request] = taken[kind, owner] - 1
    return turns


def _carried(
    impatient: Sequence[Ticket],
    others: Sequence[Ticket],
    previews: Sequence[Ticket],
    costs: Costs,
    max_rows: int | None,
) -> list[Ticket]:
    """The tickets that go along with a batch of previews: `others` only while there is time."""
    rows = sum(t.rows for t in previews)
    longest_s = (1 + CARRYING) * costs.tick(rows)
    carried: list[Ticket] = []
    for t in (*impatient, *others):
        rows += t.rows
        in_time = costs.tick(rows) <= longest_s
        if not (in_time or t in impatient) or rows > (max_rows or rows):
            break
        carried.append(t)
    return carried

"""Who goes next, and how long it takes: the worker's decisions, as pure functions over tickets."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from app.job import KINDS, Kind


@dataclass(frozen=True)
class Ticket:
    """What the schedule needs to know of one unfinished picture.

    number: order of arrival, unique. steps_left: denoiser calls it still needs. rows: batch rows of one
    such call (two with classifier-free guidance). shape: what must be equal within a batch, such as the
    model and the latent shape.
    """

    number: int
    kind: Kind
    owner: str
    steps_left: int
    rows: int
    shape: Hashable


def line_up(tickets: Sequence[Ticket]) -> list[Ticket]:
    """The tickets in the order in which they are served.

    Previews before refinements before speculation; within a kind owners take turns, and each owner's
    pictures keep their order, so one person's eight previews don't hold up another's four.
    """
    taken: Counter[tuple[Kind, str]] = Counter()
    turns = {}
    for ticket in sorted(tickets, key=lambda ticket: ticket.number):
        turns[ticket.number] = taken[ticket.kind, ticket.owner]
        taken[ticket.kind, ticket.owner] += 1
    return sorted(tickets, key=lambda t: (KINDS.index(t.kind), turns[t.number], t.number))


def choose(tickets: Sequence[Ticket], max_batch: int) -> list[Ticket]:
    """The tickets of the next tick: the first in line, and those of its kind and shape that fit beside it.

    Less urgent kinds do not fill up the batch: they would slow the urgent ones down.
    """
    line = line_up(tickets)
    return [t for t in line if (t.kind, t.shape) == (line[0].kind, line[0].shape)][:max_batch]


def rows_until_done(ticket: Ticket, tickets: Sequence[Ticket]) -> int:
    """Batch rows to compute until `ticket` is done, if nobody else comes.

    More urgent pictures are finished first; those of its own kind advance beside it, so of each only as
    many steps count as the ticket itself still needs.
    """
    urgency = KINDS.index(ticket.kind)
    total = 0
    for other in tickets:
        if KINDS.index(other.kind) < urgency:
            total += other.steps_left * other.rows
        elif other.kind == ticket.kind:
            total += min(other.steps_left, ticket.steps_left) * other.rows
    return total

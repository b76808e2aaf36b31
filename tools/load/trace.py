"""Traces of visits: arrival times and actions. `python -m tools.load.trace` writes trace.jsonl."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

SHIPPED = Path(__file__).with_name("trace.jsonl")
VISITS, SEED = 600, 20251

USERS = 60
PICKING = 0.3  # of the grids are followed by a pick
THINKING_S = (2.0, 10.0)
CANCELLING, LEAVING, CANCELLING_FINAL = 0.05, 0.05, 0.05
# Arrivals are Poisson, with a rate that is higher now and then; lengths in mean gaps between arrivals.
BURST_RATE, QUIET_LENGTH, BURST_LENGTH = 2.0, 60.0, 12.0


@dataclass(frozen=True)
class Visit:
    """One grid, and what its visitor does with it.

    Attributes:
        at: arrival, in mean gaps between arrivals, so that one trace serves all rates.
        user: number of the visitor.
        seed: first seed of the grid.
        pick: position of the preview that is picked, if any.
        think_s: seconds from the last preview to the pick.
        cancel_s: seconds after which the grid is cancelled.
        leave_s: seconds after which the tab is closed.
        cancel_final_s: seconds from the pick to the cancel of its refinement.
    """

    at: float
    user: int
    seed: int
    pick: int | None
    think_s: float
    cancel_s: float | None = None
    leave_s: float | None = None
    cancel_final_s: float | None = None


def make_trace(count: int, seed: int, grid: int = 4) -> list[Visit]:
    """Draw `count` visits of a mean gap of 1 from `seed`; picks are uniform over the grid's positions."""
    rng = np.random.default_rng(seed)
    visits = []
    for number, at in enumerate(_arrivals(count, rng)):
        fate = rng.random()
        cancels, leaves = fate < CANCELLING, CANCELLING <= fate < CANCELLING + LEAVING
        picks = rng.random() < PICKING
        visits.append(
            Visit(
                at=round(at, 4),
                user=int(rng.integers(USERS)),
                seed=1000 * number,
                pick=int(rng.integers(grid)) if picks else None,
                think_s=round(float(rng.uniform(*THINKING_S)), 3),
                cancel_s=round(float(rng.uniform(0.1, 2)), 3) if cancels else None,
                leave_s=round(float(rng.uniform(0.5, 8)), 3) if leaves else None,
                cancel_final_s=(
                    round(float(rng.uniform(0.2, 3)), 3)
                    if picks and rng.random() < CANCELLING_FINAL
                    else None
                ),
            )
        )
    return visits


def _arrivals(count: int, rng: np.random.Generator) -> Sequence[float]:
    """Times of a Poisson process whose rate changes between quiet and burst, scaled to a mean gap of 1."""
    times: list[float] = []
    now, burst, change = 0.0, False, rng.exponential(QUIET_LENGTH)
    while len(times) < count:
        gap = rng.exponential(1 / BURST_RATE if burst else 1.0)
        if now + gap < change:
            now += gap
            times.append(now)
        else:  # memoryless: what is left of the gap is drawn anew at the new rate
            now, burst = change, not burst
            change = now + rng.exponential(BURST_LENGTH if burst else QUIET_LENGTH)
    return [time * count / times[-1] for time in times]


def save(visits: Sequence[Visit], path: Path) -> None:
    """Write a trace, one visit a line, without fields that are None."""
    lines = [
        json.dumps({key: value for key, value in asdict(visit).items() if value is not None})
        for visit in visits
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(path: Path = SHIPPED) -> list[Visit]:
    """Read a trace that `save` wrote.

    Raises ValueError when the file holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        visits = [Visit(**({"pick": None} | json.loads(line))) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is not a trace ({error}); `python -m tools.load.trace` writes one."
        ) from error
    if not visits or any(a.at > b.at for a, b in pairwise(visits)):
        raise ValueError(f"{path} is not a trace: it needs at least one visit, in order of arrival.")
    return visits


if __name__ == "__main__":
    save(make_trace(VISITS, SEED), SHIPPED)
    print(f"{VISITS} visits in {SHIPPED}")

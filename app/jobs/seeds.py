"""Choose the seeds of a grid."""

import random
from collections.abc import Collection

from app.jobs.job import LIMITS, RequestError

# Fresh seeds stay short, so that people can read them out and type them in.
FRESH_BELOW = 1_000_000


def fresh_seeds(count: int, taken: Collection[int] = ()) -> list[int]:
    """Draw `count` different random seeds that are not in `taken`."""
    drawn: list[int] = []
    while len(drawn) < count:
        seed = random.SystemRandom().randrange(FRESH_BELOW)
        if seed not in taken and seed not in drawn:
            drawn.append(seed)
    return drawn


def following_seeds(first: int, count: int) -> list[int]:
    """Return `count` seeds from `first` on; raise RequestError if the last is out of range."""
    if first + count - 1 > LIMITS["seed"].high:
        raise RequestError(f"{count} seeds from {first} on go beyond the last one, {LIMITS['seed'].high:,}.")
    return list(range(first, first + count))

"""Which seeds a grid gets."""

import random
from collections.abc import Collection

from app.jobs.job import LIMITS, RequestError

# Fresh seeds stay short, so that people can read them out and type them in.
FRESH_BELOW = 1_000_000


def fresh_seeds(count: int, taken: Collection[int] = ()) -> list[int]:
    """`count` different random seeds, none of them among `taken`."""
    drawn: list[int] = []
    while len(drawn) < count:
        seed = random.SystemRandom().randrange(FRESH_BELOW)
        if seed not in taken and seed not in drawn:
            drawn.append(seed)
    return drawn


def following_seeds(first: int, count: int) -> list[int]:
    """`count` seeds from `first` on. Raises RequestError where they would run out of range."""
    if first + count - 1 > LIMITS["seed"].high:
        raise RequestError(f"{count} seeds from {first} on go beyond the last one, {LIMITS['seed'].high:,}.")
    return list(range(first, first + count))

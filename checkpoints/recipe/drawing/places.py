"""Places for the things in a picture, so that each stands in the clear."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from checkpoints.recipe.drawing.canvas import SIZE

AIR = 8.0
"""Clear space, in pixels, that a thing gets on every side: half a latent cell."""
TRIES = 80


@dataclass(frozen=True)
class Box:
    """Left, top, right and bottom, in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    def gap(self, other: Box) -> float:
        """Pixels between the two; negative where they overlap."""
        across = max(other.x0 - self.x1, self.x0 - other.x1)
        return max(across, other.y0 - self.y1, self.y0 - other.y1)


def around(x: float, y: float, half: float, up: float, down: float) -> Box:
    """The box of a thing that reaches `half` to both sides of x, `up` above y and `down` below it."""
    return Box(x - half, y - up, x + half, y + down)


class Spot(NamedTuple):
    """Where a thing goes, by what factor it is smaller than wanted, and the gap to what is nearest."""

    x: float
    y: float
    scale: float
    gap: float


@dataclass
class Places:
    """The boxes that are taken so far."""

    taken: list[Box] = field(default_factory=list)

    def take(self, box: Box) -> None:
        self.taken.append(box)

    def gap(self, box: Box) -> float:
        """Pixels from `box` to the nearest taken box; negative where they overlap."""
        return min((box.gap(other) for other in self.taken), default=float(SIZE))

    def find(
        self,
        rng: np.random.Generator,
        size: tuple[float, float, float],
        xs: tuple[float, float],
        ys: tuple[float, float],
        above: np.ndarray | None = None,
        scales: tuple[float, ...] = (1.0,),
    ) -> Spot:
        """Take a random place with `AIR` around it; where there is none, the emptiest of `TRIES` places.

        Where even that one is crowded, the thing is made smaller by the next of `scales`.

        Args:
            size: how far the thing reaches to each side of x, above y and below y.
            xs: range of x.
            ys: range of y.
            above: the skyline (257 heights) that the thing must stay above.
            scales: factors to `size`, from the size wanted to the smallest allowed.
        """
        best = Spot(xs[0], ys[0], scales[0], -float(SIZE))
        for scale in scales:
            half, up, down = (scale * v for v in size)
            for x, y in zip(rng.uniform(*xs, TRIES), rng.uniform(*ys, TRIES), strict=True):
                box = around(x, y, half, up, down)
                gap = self.gap(box)
                if above is not None:
                    left, right = (int(np.clip(v, 0, SIZE)) for v in (box.x0, box.x1 + 1))
                    gap = min(gap, float(above[left:right].min()) - box.y1 + 0.5 * AIR)
                if gap > best.gap:
                    best = Spot(float(x), float(y), scale, gap)
                if gap >= AIR:
                    break
            if best.gap >= 0.5 * AIR:
                break
        self.take(around(best.x, best.y, *(best.scale * v for v in size)))
        return best

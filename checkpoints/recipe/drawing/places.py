"""Places for the things in a picture, so that each stands in the clear."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    ) -> tuple[float, float, float]:
        """Take a random place with `AIR` around it; where there is none, the emptiest of `TRIES` places.

        Args:
            size: how far the thing reaches to each side of x, above y and below y.
            xs: range of x.
            ys: range of y.
            above: the skyline (257 heights) that the thing must stay above.

        Returns:
            x, y and the gap to the nearest taken box or to the skyline.
        """
        best, best_gap = (xs[0], ys[0]), -float(SIZE)
        for x, y in zip(rng.uniform(*xs, TRIES), rng.uniform(*ys, TRIES), strict=True):
            box = around(x, y, *size)
            gap = self.gap(box)
            if above is not None:
                left, right = (int(np.clip(v, 0, SIZE)) for v in (box.x0, box.x1 + 1))
                gap = min(gap, float(above[left:right].min()) - box.y1 + 0.5 * AIR)
            if gap > best_gap:
                best, best_gap = (float(x), float(y)), gap
            if gap >= AIR:
                break
        self.take(around(*best, *size))
        return *best, best_gap

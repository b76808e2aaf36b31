"""What every painter works with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from checkpoints.recipe.drawing.canvas import Canvas
from checkpoints.recipe.drawing.mood import Mood
from checkpoints.recipe.scenes import Scene


@dataclass(frozen=True)
class Painting:
    """A picture in the making: where it is drawn, what it shows, in which colours, and its chance."""

    canvas: Canvas
    scene: Scene
    mood: Mood
    rng: np.random.Generator

"""How similar a preview and its refined picture are, as a number and as a sentence."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

# The sentence for at least so many decibels.
WORDS = (
    (32.0, "Practically the same picture"),
    (26.0, "The same picture, finer details"),
    (21.0, "The same scene, some details moved"),
    (16.0, "The same idea, clearly different details"),
    (-np.inf, "Another picture: the preview misled"),
)


@dataclass(frozen=True)
class Likeness:
    """How similar two pictures are.

    Attributes:
        decibels: peak signal-to-noise ratio; infinite for equal pictures.
        words: a sentence on the visible difference.
    """

    decibels: float
    words: str


def compare(preview: Image.Image, final: Image.Image) -> Likeness:
    """Compare two pictures of one size.

    With numpy: a thread that has computed with torch keeps OpenMP threads, which slow down the worker's.
    """
    error = float(np.mean((_array(preview) - _array(final)) ** 2))
    decibels = -10 * math.log10(error) if error else math.inf
    return Likeness(decibels, next(words for least, words in WORDS if decibels >= least))


def _array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255

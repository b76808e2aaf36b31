"""How alike a preview and its refined picture are, in words and in numbers."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from solver import psnr

# From this many decibels on, in falling order.
WORDS = (
    (32.0, "Practically the same picture"),
    (26.0, "The same picture, finer details"),
    (21.0, "The same scene, some details moved"),
    (16.0, "The same idea, clearly different details"),
    (-np.inf, "Another picture: the preview misled"),
)


@dataclass(frozen=True)
class Likeness:
    """decibels: peak signal-to-noise ratio, infinite for equal pictures. words: what that looks like."""

    decibels: float
    words: str


def compare(preview: Image.Image, final: Image.Image) -> Likeness:
    """The likeness of two RGB pictures of one size."""
    decibels = float(psnr(_tensor(preview), _tensor(final)))
    return Likeness(decibels, next(words for least, words in WORDS if decibels >= least))


def _tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255

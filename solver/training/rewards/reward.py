"""Rewards as features and a similarity of features, and weighted sums of rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

AXES = 3
"""Maximum number of axes of features, without the batch."""


class RewardError(ValueError):
    """A reward that cannot be made; the message says what to do."""


class Part(NamedTuple):
    """The two functions of a similarity; see `Reward` for their arguments."""

    features: Callable[[Tensor], Tensor]
    similarity: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Reward:
    """Similarity of pictures to their targets, in two steps: a target's features are computed only once.

    Features are one float32 tensor [B, …] per batch, which may be indexed, repeated, concatenated and stored.

    Attributes:
        name: the text it was made from.
        differentiable: whether a gradient reaches the pictures through every term.
        features: float pictures [B, 3, H, W] in [0, 1], on the reward's device → features [B, …].
        similarity: features of pictures, features of their targets → float32 [B], higher is better. Either
            may have a batch of 1, which is compared with all of the other.
    """

    name: str
    differentiable: bool
    features: Callable[[Tensor], Tensor]
    similarity: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, pictures: Tensor, targets: Tensor) -> Tensor:
        """Return the similarity [B] of pictures to targets, both [B, 3, H, W] in [0, 1]."""
        return self.similarity(self.features(pictures), self.features(targets))


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate features [B, …] into one [B, F]; each row begins with their shapes."""
    shapes = [(*t.shape[1:], *[0] * (AXES + 1 - t.dim())) for t in tensors]
    head = tensors[0].new_tensor(shapes, dtype=torch.float32).flatten().expand(len(tensors[0]), -1)
    return torch.cat([head, *(t.float().flatten(1) for t in tensors)], dim=1)


def unpack(packed: Tensor, count: int) -> list[Tensor]:
    """Split the result of `pack` into its `count` features."""
    head, body = packed.tensor_split([AXES * count], dim=1)
    shapes = [[int(n) for n in shape if n] for shape in head[0].view(count, AXES).tolist()]
    columns = body.split([math.prod(shape) for shape in shapes], dim=1)
    return [c.reshape(-1, *shape) for c, shape in zip(columns, shapes, strict=True)]


def combine(parts: Sequence[Part], factors: Sequence[float]) -> Part:
    """Return the sum of factors · similarities; every part's features are computed once."""
    if len(parts) == 1 and factors[0] == 1:
        return parts[0]

    def features(pictures: Tensor) -> Tensor:
        return pack([part.features(pictures) for part in parts])

    def similarity(pictures: Tensor, targets: Tensor) -> Tensor:
        pairs = zip(unpack(pictures, len(parts)), unpack(targets, len(parts)), strict=True)
        terms = [f * part.similarity(*pair) for f, part, pair in zip(factors, parts, pairs, strict=True)]
        return torch.stack(terms).sum(dim=0)

    return Part(features, similarity)

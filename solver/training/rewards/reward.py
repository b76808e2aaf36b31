"""A reward as features and a similarity of features, and sums of rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

AXES = 3
"""Features have at most this many axes beside the batch."""


class RewardError(ValueError):
    """A reward that cannot be made, and what to do about it."""


class Part(NamedTuple):
    """One measure of similarity; `Reward` says what the two functions take and give."""

    features: Callable[[Tensor], Tensor]
    similarity: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Reward:
    """How similar pictures are to their targets, in two steps, so that a target's features need computing
    only once.

    Features are one float32 tensor [B, …] per batch, a sum's too: index, repeat, concatenate and store them
    as any tensor. What the numbers mean is the reward's own affair.

    Attributes:
        name: the specification it was made from.
        differentiable: whether a gradient reaches the pictures through every term.
        features: float pictures [B, 3, H, W] in [0, 1], on the reward's device → features [B, …].
        similarity: features of pictures, features of their targets → float32 [B], higher is better. Of one
            target and many pictures, or the other way round, the one is compared with all.
    """

    name: str
    differentiable: bool
    features: Callable[[Tensor], Tensor]
    similarity: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, pictures: Tensor, targets: Tensor) -> Tensor:
        """Similarity [B] of pictures to targets, both [B, 3, H, W] in [0, 1]."""
        return self.similarity(self.features(pictures), self.features(targets))


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Features [B, …] side by side in one [B, F], each row led by the features' shapes."""
    shapes = [(*t.shape[1:], *[0] * (AXES + 1 - t.dim())) for t in tensors]
    head = tensors[0].new_tensor(shapes, dtype=torch.float32).flatten().expand(len(tensors[0]), -1)
    return torch.cat([head, *(t.float().flatten(1) for t in tensors)], dim=1)


def unpack(packed: Tensor, count: int) -> list[Tensor]:
    """The `count` features that `pack` put side by side."""
    head, body = packed.tensor_split([AXES * count], dim=1)
    shapes = [[int(n) for n in shape if n] for shape in head[0].view(count, AXES).tolist()]
    columns = body.split([math.prod(shape) for shape in shapes], dim=1)
    return [c.reshape(-1, *shape) for c, shape in zip(columns, shapes, strict=True)]


def combine(parts: Sequence[Part], factors: Sequence[float]) -> Part:
    """The sum of factors · similarities. Every part's features are computed once."""
    if len(parts) == 1 and factors[0] == 1:
        return parts[0]

    def features(pictures: Tensor) -> Tensor:
        return pack([part.features(pictures) for part in parts])

    def similarity(pictures: Tensor, targets: Tensor) -> Tensor:
        pairs = zip(unpack(pictures, len(parts)), unpack(targets, len(parts)), strict=True)
        terms = [f * part.similarity(*pair) for f, part, pair in zip(factors, parts, pairs, strict=True)]
        return torch.stack(terms).sum(dim=0)

    return Part(features, similarity)

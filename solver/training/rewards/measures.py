"""Similarities of features [B, …]: one number per picture, [B], higher is better.

Either side may hold one picture only, which is then compared with all of the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solver import similarity

CEILING = 100.0
"""What equal features reach, in dB."""


def decibels(ratio: Tensor) -> Tensor:
    """-10 · log10 of an error relative to its scale, at most CEILING, with a finite gradient everywhere."""
    return -10 * ratio.clamp(min=10 ** (-CEILING / 10)).log10()


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (a - b)²."""
    return (a - b).flatten(1).square().mean(dim=1)


def peak_signal_to_noise(pictures: Tensor, targets: Tensor) -> Tensor:
    """PSNR in dB of pictures in [0, 1], `solver.psnr` with a ceiling."""
    return decibels(squared_error(pictures, targets))


def structure(pictures: Tensor, targets: Tensor) -> Tensor:
    """SSIM, at most 1, of pictures in [0, 1]."""
    return similarity.ssim(*torch.broadcast_tensors(pictures, targets))


def signal_to_noise(features: Tensor, targets: Tensor) -> Tensor:
    """10 · log10(variance of the target's features / mean squared error), in dB, at most CEILING.

    Both sides are measured on the *target's* scale: 0 dB is an error as large as the target's own variation,
    which its mean alone would reach. Scaling each side by its own range instead would forgive whatever
    stretches or shifts all features, and how much a preview is forgiven would depend on its own extremes. A
    target without variation counts as varying by a thousandth of its size.
    """
    flat = targets.flatten(1)
    floor = 1e-6 * flat.square().mean(dim=1).clamp(min=1e-12)
    return decibels(squared_error(features, targets) / flat.var(dim=1, correction=0).maximum(floor))


def cosine(features: Tensor, targets: Tensor) -> Tensor:
    """Cosine of the angle between features, -1 … 1."""
    return F.cosine_similarity(features.flatten(1), targets.flatten(1), dim=1)


def agreement(labels: Tensor, targets: Tensor) -> Tensor:
    """The share of labels that are the same, 0 … 1."""
    return (labels == targets).float().flatten(1).mean(dim=1)


def negative_squared_distance(features: Tensor, targets: Tensor) -> Tensor:
    """-‖features - targets‖², at most 0."""
    return -(features - targets).flatten(1).square().sum(dim=1)

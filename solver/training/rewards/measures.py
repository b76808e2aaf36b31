"""Similarities [B] of features [B, …], higher is better.

Either side may have a batch of 1, which is compared with every picture of the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solver import similarity

CEILING = 100.0
"""Similarity of equal features, in dB."""


def decibels(ratio: Tensor) -> Tensor:
    """Return -10 · log10(ratio), at most CEILING, with a finite gradient everywhere."""
    return -10 * ratio.clamp(min=10 ** (-CEILING / 10)).log10()


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean of (a - b)² per picture."""
    return (a - b).flatten(1).square().mean(dim=1)


def peak_signal_to_noise(pictures: Tensor, targets: Tensor) -> Tensor:
    """Return the PSNR in dB of pictures in [0, 1], at most CEILING."""
    return decibels(squared_error(pictures, targets))


def structure(pictures: Tensor, targets: Tensor) -> Tensor:
    """Return the SSIM, at most 1, of pictures in [0, 1]."""
    return similarity.ssim(*torch.broadcast_tensors(pictures, targets))


def signal_to_noise(features: Tensor, targets: Tensor) -> Tensor:
    """Return 10 · log10(variance of the target's features / mean squared error), in dB, at most CEILING.

    0 dB is the error of the target's mean. Only the target's scale counts: scaling each side by its own range
    would hide a stretch or shift of all features. The standard deviation of a constant target is taken as a
    thousandth of its root mean square.
    """
    flat = targets.flatten(1)
    floor = 1e-6 * flat.square().mean(dim=1).clamp(min=1e-12)
    return decibels(squared_error(features, targets) / flat.var(dim=1, correction=0).maximum(floor))


def cosine(features: Tensor, targets: Tensor) -> Tensor:
    """Return the cosine of the angle between features, -1 … 1."""
    return F.cosine_similarity(features.flatten(1), targets.flatten(1), dim=1)


def agreement(labels: Tensor, targets: Tensor) -> Tensor:
    """Return the share of equal labels, 0 … 1."""
    return (labels == targets).float().flatten(1).mean(dim=1)


def negative_squared_distance(features: Tensor, targets: Tensor) -> Tensor:
    """Return -‖features - targets‖², at most 0."""
    return -(features - targets).flatten(1).square().sum(dim=1)

"""How alike two pictures are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB; infinite for equal pictures.

    Args:
        a, b: pictures in [0, 1], [..., channels, height, width].

    Returns:
        One number per picture, [...].
    """
    return -10 * (a.float() - b.float()).square().mean(dim=(-3, -2, -1)).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13), at most 1, averaged over channels and places.

    Their 11×11 Gaussian window with standard deviation 1.5, at the places where it lies inside the picture.

    Args:
        a, b: pictures in [0, 1], [..., channels, height, width], at least 11×11.

    Returns:
        One number per picture, [...].
    """
    if min(a.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs pictures of at least 11×11 pixels, not {a.shape[-1]}×{a.shape[-2]}.")
    g = torch.exp(-((torch.arange(11.0, device=a.device) - 5) ** 2) / (2 * 1.5**2))
    g = g / g.sum()

    def mean(x: Tensor) -> Tensor:
        rows = F.conv2d(x.reshape(-1, 1, *x.shape[-2:]), g.view(1, 1, -1, 1))
        return F.conv2d(rows, g.view(1, 1, 1, -1))

    a, b = a.float(), b.float()
    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mu_a**2, mean(b * b) - mu_b**2, mean(a * b) - mu_a * mu_b
    C1, C2 = 0.01**2, 0.03**2
    similarity = (2 * mu_a * mu_b + C1) * (2 * cov + C2) / ((mu_a**2 + mu_b**2 + C1) * (var_a + var_b + C2))
    return similarity.reshape(*a.shape[:-2], -1).mean(dim=(-2, -1))

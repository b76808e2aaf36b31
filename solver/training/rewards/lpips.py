"""Learned perceptual image patch similarity (Zhang et al. 2018, eq. 1), of AlexNet's layers, version 0.1.

The distance is Σ over layers of the mean over positions of Σ over channels w · (f - f')², where f are
activations normalised over channels. With √w and √(1 / positions) multiplied into the features, it is a
squared Euclidean distance, so the features of a target are computed only once.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from solver.training.rewards.measures import negative_squared_distance
from solver.training.rewards.networks import OPTIONAL
from solver.training.rewards.reward import Part, RewardError

ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
"""torchvision's AlexNet weights, trained on ImageNet, 233 MB."""
LAYERS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
"""Channels, kernel, stride and padding of AlexNet's convolutions (Krizhevsky 2014)."""
POOLED = (0, 1)
"""Indices of the convolutions that a 3×3 maximum pooling with stride 2 follows."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation by which LPIPS normalises pictures in -1 … 1."""
SMALLEST = 31
"""Shortest edge in pixels: the last layer then has one position."""


def alexnet() -> nn.Sequential:
    """Build AlexNet up to its last convolution, numbered as torchvision's `features`."""
    layers: list[nn.Module] = []
    channels = 3
    for i, (width, kernel, stride, padding) in enumerate(LAYERS):
        layers += [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if i in POOLED else []
        channels = width
    return nn.Sequential(*layers)


def lpips_features(network: nn.Sequential, weights: list[Tensor], pictures: Tensor) -> Tensor:
    """Return features [B, F] of pictures [B, 3, H, W] in [0, 1]; LPIPS is their squared distance.

    Args:
        network: `alexnet()`.
        weights: of the channels, [1, channels, 1, 1] for each layer, at least 0.

    Raises:
        ValueError: pictures smaller than SMALLEST.
    """
    if min(pictures.shape[-2:]) < SMALLEST:
        raise ValueError(f"LPIPS needs pictures of at least {SMALLEST}×{SMALLEST} pixels.")
    x = 2 * pictures.float() - 1
    x = (x - x.new_tensor(SHIFT).view(3, 1, 1)) / x.new_tensor(SCALE).view(3, 1, 1)
    activations = []
    for layer in network:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            activations.append(x)
    return torch.cat([_scaled(f, w) for f, w in zip(activations, weights, strict=True)], dim=1)


def _scaled(f: Tensor, w: Tensor) -> Tensor:
    positions = f.shape[-2] * f.shape[-1]
    return (f / (f.square().sum(dim=1, keepdim=True) + 1e-8).sqrt() * (w / positions).sqrt()).flatten(1)


def make_lpips(weights: str, readers: Path | None, device: torch.device) -> Part:
    """Make the reward -LPIPS; `weights` is the file or the address of AlexNet's weights.

    Raises:
        RewardError: AlexNet's weights cannot be read, or torchmetrics, which contains LPIPS's, is missing.
    """
    linear = torch.load(_linear_weights(), map_location=device, weights_only=True)
    network = alexnet()
    try:
        if "://" in weights:
            state = torch.hub.load_state_dict_from_url(
                weights, map_location="cpu", check_hash=True, weights_only=True
            )
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict({f"{i}": state[f"features.{i}"] for i in network.state_dict()})
    # A missing, damaged or foreign file raises errors of many types.
    except Exception as error:
        raise RewardError(
            f"Cannot read AlexNet's weights from {weights} ({error}). Download {ALEXNET} on a machine with "
            f"internet access; put it into {torch.hub.get_dir()}/checkpoints or give the file: lpips:FILE."
        ) from error
    network.to(device).eval().requires_grad_(False)
    scales = [linear[f"lin{i}.model.1.weight"] for i in range(len(LAYERS))]
    return Part(lambda pictures: lpips_features(network, scales, pictures), negative_squared_distance)


def _linear_weights() -> Path:
    # Found without importing torchmetrics.
    package = importlib.util.find_spec("torchmetrics")
    if package is None or not package.submodule_search_locations:
        raise RewardError(f"The reward lpips needs the package torchmetrics: pip install -r {OPTIONAL}.")
    return Path(package.submodule_search_locations[0]) / "functional/image/lpips_models/alex.pth"

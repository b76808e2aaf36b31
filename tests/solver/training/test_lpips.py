"""LPIPS against its definition, and against another implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from solver.training.rewards import make_reward
from solver.training.rewards.lpips import LAYERS, alexnet, lpips_features
from tests.solver.training.tiny_rewards import pictures


def test_lpips_is_a_squared_distance_of_its_features() -> None:
    """Against its definition, written out."""
    torch.manual_seed(0)
    network, weights = alexnet(), [torch.rand(1, width, 1, 1) for width, *_ in LAYERS]
    a, b = pictures(2, seed=1), pictures(2, seed=2)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total = torch.zeros(2)
    x, y = (((2 * p - 1) - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for p in (a, b))
    left = iter(weights)
    for layer in network:
        x, y = layer(x), layer(y)
        if isinstance(layer, torch.nn.ReLU):
            u, v = (z / (z.square().sum(dim=1, keepdim=True) + 1e-8).sqrt() for z in (x, y))
            total = total + (next(left) * (u - v) ** 2).sum(dim=1).mean(dim=(1, 2))
    difference = lpips_features(network, weights, a) - lpips_features(network, weights, b)
    torch.testing.assert_close(difference.square().sum(dim=1), total)
    assert lpips_features(network, weights, pictures(1, 31, 31)).isfinite().all()
    with pytest.raises(ValueError, match="at least 31×31"):
        lpips_features(network, weights, pictures(1, 30, 64))


def test_lpips_is_torchmetrics(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    module = pytest.importorskip("torchmetrics.functional.image.lpips")
    twin = module._LPIPS(net="alex", pnet_rand=True)
    state = {f"features.{k.split('.', 1)[1]}": v for k, v in twin.net.state_dict().items()}
    torch.save(state, tmp_path / "alexnet.pth")
    a, b = pictures(2, seed=1), pictures(2, seed=2)
    expected = -twin(a, b, normalize=True).flatten()
    torch.testing.assert_close(make_reward(f"lpips:{tmp_path / 'alexnet.pth'}")(a, b), expected)

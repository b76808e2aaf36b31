"""The decoder learns from latents as the UNet leaves them; see also `test_all`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from checkpoints.recipe import train_unet
from checkpoints.recipe.train_decoder import DecoderWithCritic, adversarial_losses, balance


@pytest.fixture
def model() -> DecoderWithCritic:
    torch.manual_seed(0)
    return DecoderWithCritic(nn.Sequential(nn.Conv2d(4, 48, 1), nn.PixelShuffle(4)))


def _gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def test_each_loss_moves_its_own_network_alone(model: DecoderWithCritic) -> None:
    drawn, decoded = torch.rand(2, 3, 32, 32), model.decoder(torch.randn(2, 4, 8, 8))
    critic, fooled = adversarial_losses(model, drawn, decoded)
    critic.backward()
    assert _gradients(model.critic) and not _gradients(model.decoder)
    model.zero_grad(set_to_none=True)
    fooled.backward()
    assert _gradients(model.decoder) and not _gradients(model.critic)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_critic_learns_to_tell_blurred_from_sharp(model: DecoderWithCritic) -> None:
    optimizer = torch.optim.Adam(model.critic.parameters(), lr=1e-3)
    losses = []
    for _ in range(40):
        sharp = torch.rand(4, 3, 32, 32).round()
        blurred = nn.functional.avg_pool2d(sharp, 5, 1, 2)
        loss, _ = adversarial_losses(model, sharp, blurred)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_balance_makes_both_gradients_equally_large() -> None:
    last = torch.randn(5, requires_grad=True)
    strong, weak = 3 * last.sum(), last.square().sum()
    factor = balance(strong, weak, last)
    one, other = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (strong, factor * weak)
    )
    torch.testing.assert_close(one, other)
    assert balance(strong, 0 * weak, last) == 10  # bounded where the critic has no opinion


def test_latents_of_more_drawings_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = np.random.default_rng(0).normal(size=(8, 16, 16, 16)).astype("float16")
    np.save(tmp_path / "latents.npy", made)
    np.save(tmp_path / "latents-done.npy", np.ones(8, bool))
    (tmp_path / "pipeline").mkdir()
    monkeypatch.setattr(train_unet.data, "load", lambda _: (np.zeros((8, 256, 256, 3), np.uint8), None))
    monkeypatch.setattr(
        train_unet.LandscapesAutoencoder, "from_pretrained", lambda _: train_unet.LandscapesAutoencoder()
    )
    few = train_unet.cache_latents(tmp_path, 4, torch.device("cpu"))
    assert np.array_equal(few, made[:4])
    assert np.array_equal(np.load(tmp_path / "latents.npy"), made)

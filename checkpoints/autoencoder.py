"""The autoencoder of `landscapes`: 256 × 256 × 3 pixels to 16 × 16 × 16 latents and back.

Flat illustrations are cheap to compress but dear to draw crisply, and at full resolution a CPU's memory
traffic costs more than its arithmetic. So no convolution here runs above an eighth of the resolution on the
way in or a quarter on the way out: pixels are folded into channels first and unfolded at the end.
"""

from __future__ import annotations

import math

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), starting as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(x))
        return x + self.conv2(nn.functional.silu(h))


def _stage(channels: int, layers: int) -> list[nn.Module]:
    return [ResidualBlock(channels) for _ in range(layers)]


class LandscapesAutoencoder(ModelMixin, ConfigMixin):
    """A convolutional autoencoder with unit-variance latents, usable as the `vae` of a stock pipeline.

    The latents are normalised per channel over the training pictures (a batch norm without affine part), so
    `scaling_factor` is exactly 1. The posterior is N(mean, latent_noise²): training decodes latents with that
    much noise on them, which keeps the decoder calm about small errors of the diffusion model.

    Args:
        latent_channels: channels of the latents.
        block_out_channels: channels at 256², 128², 64², 32² and 16². The encoder folds straight to 32², the
            decoder unfolds straight from 64².
        encoder_layers, decoder_layers: residual blocks at 64² (decoder only), 32² and 16².
        latent_noise: standard deviation of the posterior.
        scaling_factor: what pipelines multiply the latents with.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        block_out_channels: tuple[int, ...] = (3, 12, 48, 96, 160),
        encoder_layers: tuple[int, int] = (1, 2),
        decoder_layers: tuple[int, int, int] = (1, 3, 2),
        latent_noise: float = 0.1,
        scaling_factor: float = 1.0,
        sample_size: int = 256,
    ) -> None:
        super().__init__()
        _, _, c4, c8, c16 = block_out_channels
        self.encoder = nn.Sequential(
            # What the latents cannot hold anyway is averaged away first: it quarters the work.
            nn.AvgPool2d(2),
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, c8, 3, padding=1),
            *_stage(c8, encoder_layers[0]),
            nn.Conv2d(c8, c16, 2, stride=2),
            *_stage(c16, encoder_layers[1]),
            nn.SiLU(),
            nn.Conv2d(c16, latent_channels, 3, padding=1),
        )
        self.norm = nn.BatchNorm2d(latent_channels, affine=False)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, c16, 3, padding=1),
            *_stage(c16, decoder_layers[2]),
            nn.Conv2d(c16, 4 * c8, 1),
            nn.PixelShuffle(2),
            *_stage(c8, decoder_layers[1]),
            nn.Conv2d(c8, 4 * c4, 1),
            nn.PixelShuffle(2),
            *_stage(c4, decoder_layers[0]),
            nn.SiLU(),
            nn.Conv2d(c4, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )

    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Pixels (b, 3, h, w) in -1..1, sides divisible by 16, to a posterior over (b, 16, h/16, w/16)."""
        mean = self.norm(self.encoder(x))
        log_variance = torch.full_like(mean, 2 * math.log(self.config.latent_noise))
        posterior = DiagonalGaussianDistribution(torch.cat([mean, log_variance], dim=1))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents (b, 16, h, w) to pixels (b, 3, 16h, 16w), about -1..1. `generator` is unused: decoding is
        deterministic; pipelines pass it to every autoencoder."""
        sample = self.decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct through sampled latents, as in training."""
        posterior = self.encode(x, return_dict=False)[0]
        return self.decode(posterior.sample(), return_dict=False)[0]

"""A text-to-image model as the solver sees it: a guided network in latent space, with words and pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solver.sampling import Denoiser, classifier_free_guidance, noise_for_seed
from solver.schedule import NoiseSchedule


@dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """The parts of a Stable Diffusion pipeline that make a picture, in inference mode on one device.

    Attributes:
        latent_shape: (channels, height, width) of the latents of one picture.
        schedule: the noise levels that it was trained on.
        scheduler_config: of the scheduler that it came with.
        unet, vae, text_encoder, tokenizer: diffusers' and transformers'.
    """

    latent_shape: tuple[int, int, int]
    schedule: NoiseSchedule = field(repr=False)
    scheduler_config: Mapping[str, Any] = field(repr=False)
    unet: Any = field(repr=False)
    vae: Any = field(repr=False)
    text_encoder: Any = field(repr=False)
    tokenizer: Any = field(repr=False)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.unet.device

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit-variance noise [B, *latent_shape], one seed to a picture."""
        return torch.stack([noise_for_seed(seed, self.latent_shape) for seed in seeds]).to(self.device)

    def tokenize(self, text: str | list[str], **options: Any) -> Any:
        """What the tokenizer makes of prompts."""
        return self.tokenizer(text, **options)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings [B, tokens, width], as the stock pipeline makes them."""
        tokens = self.tokenize(
            list(prompts),
            padding="max_length",
            max_length=min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings),
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        mask = (
            tokens.attention_mask if getattr(self.text_encoder.config, "use_attention_mask", False) else None
        )
        return self.text_encoder(tokens.input_ids, attention_mask=mask)[0]

    def denoise(
        self, x: Tensor, timesteps: Tensor, prompts: Tensor, negatives: Tensor, guidance: Tensor
    ) -> Tensor:
        """The guided output in one call of the network, each sample with its own timestep and guidance.

        Args:
            x: [B, *latent_shape].
            timesteps: [B].
            prompts, negatives: embeddings [B, tokens, width].
            guidance: [B], at least 1. Samples with 1 follow the prompt alone and need no second row.

        Returns:
            [B, *latent_shape].
        """
        guided = (guidance != 1).to(x.device)
        output = self.unet(
            torch.cat([x, x[guided]]),
            torch.cat([timesteps, timesteps[guided]]).to(x.device),
            encoder_hidden_states=torch.cat([prompts, negatives[guided]]),
            return_dict=False,
        )[0]
        conditional, unconditional = output[: len(x)], output[len(x) :]
        moved = classifier_free_guidance(unconditional, conditional[guided], guidance.to(x.device)[guided])
        return conditional.masked_scatter(guided.view(-1, *[1] * (x.dim() - 1)), moved)

    def denoiser(self, prompts: Sequence[str], guidance: Tensor) -> Denoiser:
        """The network for these prompts without negative ones, as `sample` and `rollout` call it.

        Args:
            guidance: [B].
        """
        embeddings = self.encode(prompts)
        negatives = self.encode([""]).expand_as(embeddings)
        return lambda x, timesteps: self.denoise(x, timesteps, embeddings, negatives, guidance)

    @property
    def fingerprint(self) -> str:
        """Tells models apart: SHA-256, in hex, of the network's config and of the start of each weight."""
        digest = hashlib.sha256(repr(sorted(self.unet.config.items(), key=str)).encode())
        for name, weight in sorted(self.unet.state_dict().items()):
            digest.update(name.encode() + weight.flatten()[:64].float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, *latent_shape] as pictures [B, 3, H, W], about 0 … 1 and not clipped."""
        config = self.vae.config
        z = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        return self.vae.decode(z, return_dict=False)[0] / 2 + 0.5


def load_diffusion(model: str | Path, device: torch.device | str = "cpu") -> LatentDiffusion:
    """A Stable Diffusion pipeline from a folder or the Hub, in float32.

    Raises:
        ValueError: another kind of pipeline.
        OSError: no such folder or repository.
    """
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    import checkpoints  # noqa: F401  the embedded model's autoencoder

    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    if not isinstance(pipe, StableDiffusionPipeline):
        raise ValueError(f"{model} holds a {type(pipe).__name__}; a StableDiffusionPipeline is needed here.")
    for network in (pipe.unet, pipe.vae, pipe.text_encoder):
        network.to(device).eval().requires_grad_(False)
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return LatentDiffusion(
        latent_shape=(pipe.unet.config.in_channels, height, width),
        schedule=NoiseSchedule.from_config(pipe.scheduler),
        scheduler_config=pipe.scheduler.config,
        unet=pipe.unet,
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
    )

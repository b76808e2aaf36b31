"""A text-to-image model as the solver sees it: a guided network in latent space, with words and pictures."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from solver.diffusion.conditions import Conditions
from solver.plan import Plan
from solver.sampling import Denoiser, classifier_free_guidance, noise_for_seed
from solver.schedule import NoiseSchedule, shift_for

GuidanceKind = Literal["classifier-free", "embedded", "none"]
"""Two calls of the network, one of them without the prompt; a scale that it is told; or neither."""


@dataclass(frozen=True, eq=False)
class LatentDiffusion(ABC):
    """The parts of a diffusers pipeline that make a picture, in inference mode on one device.

    Attributes:
        latent_shape: (channels, height, width) of the latents of one picture of the default size.
        scheduler_config: of the scheduler that it came with.
        parts: diffusers' and transformers' objects, by their names in model_index.json.
        settings: what else model_index.json says.
    """

    latent_shape: tuple[int, int, int]
    scheduler_config: Mapping[str, Any] = field(repr=False)
    parts: Mapping[str, Any] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)

    network_name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    may_lack: ClassVar[tuple[str, ...]] = ()
    # Latents along the edge of what the network takes as one token, which must divide every size.
    patch: ClassVar[int] = 1
    edits: ClassVar[bool] = False

    @staticmethod
    def native_shape(parts: Mapping[str, Any]) -> tuple[int, int, int]:
        """The latents that a model of these parts was made for."""
        raise NotImplementedError

    @abstractmethod
    def _encode(self, prompts: Sequence[str], negative: bool) -> Conditions: ...

    def _call(self, x: Tensor, timesteps: Tensor, conditions: Conditions, guidance: Tensor) -> Tensor:
        """The network's output [B, C, H, W], where `guidance` matters to embedded guidance alone."""
        raise NotImplementedError

    @property
    @abstractmethod
    def max_prompt_tokens(self) -> int:
        """How many tokens a prompt may have, those that frame it included."""

    @property
    def tokenizer(self) -> Any:
        """That of the text encoder that reads the most."""
        return self.parts["tokenizer"]

    @property
    def network(self) -> Any:
        """The denoiser."""
        return self.parts[self.network_name]

    @property
    def vae(self) -> Any:
        """Between latents and pictures."""
        return self.parts["vae"]

    @property
    def device(self) -> torch.device:
        """Where it runs; its parts may wait elsewhere until they are called."""
        hook = getattr(self.network, "_hf_hook", None)
        return getattr(hook, "execution_device", None) or self.network.device

    @property
    def guidance_kind(self) -> GuidanceKind:
        """What a guidance scale does."""
        return "classifier-free"

    @property
    def reads_negative_prompts(self) -> bool:
        """Whether it is told what not to draw."""
        return self.guidance_kind == "classifier-free"

    @property
    def unguided(self) -> float:
        """The guidance scale at which the network is called with the prompt alone."""
        return 1.0

    @property
    def needs_picture(self) -> bool:
        """Whether it cannot draw without a picture to edit."""
        return False

    @property
    def scale(self) -> int:
        """Pixels along the edge of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def multiple(self) -> int:
        """What must divide the width and the height of a picture."""
        return self.patch * self.scale

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels that it was trained on, on a flow with the shift for the default size."""
        return self.schedule_at(self.latent_shape)

    def draw(self, seed: int, width: int, height: int) -> Tensor:
        """Unit-variance noise [C, H, W] of one picture of so many pixels, the same on every device."""
        return noise_for_seed(seed, self.shape_of(width, height))

    def begin(self, prompt: Conditions, negative: Conditions, plan: Plan, guidance: float) -> Conditions:
        """The prompt's conditions of one sample that will be denoised step by step along a plan."""
        return prompt

    def schedule_at(self, latent_shape: Sequence[int]) -> NoiseSchedule:
        """The same for pictures of another size: some flows are shifted with it."""
        _, height, width = latent_shape
        tokens = height * width // self.patch**2
        return NoiseSchedule.from_config(self.scheduler_config, mu=shift_for(self.scheduler_config, tokens))

    def shape_of(self, width: int, height: int) -> tuple[int, int, int]:
        """The latents of pictures of so many pixels.

        Raises:
            ValueError: an edge that `multiple` does not divide.
        """
        if width % self.multiple or height % self.multiple:
            raise ValueError(f"Edges must be multiples of {self.multiple} pixels, not {width} × {height}.")
        return self.latent_shape[0], height // self.scale, width // self.scale

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit-variance noise [B, *latent_shape], one seed to a picture."""
        return torch.stack([noise_for_seed(seed, self.latent_shape) for seed in seeds]).to(self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], *, negative: bool = False) -> Conditions:
        """Prompts, or with `negative` negative ones, as the stock pipeline encodes them; "" means none."""
        return self._encode(list(prompts), negative)

    def denoise(
        self, x: Tensor, timesteps: Tensor, prompts: Conditions, negatives: Conditions, guidance: Tensor
    ) -> Tensor:
        """The guided output in one call of the network, each sample with its own timestep and guidance.

        Args:
            x: [B, C, H, W], of any one size.
            timesteps: [B], in units of the schedule's training timesteps.
            prompts, negatives: of B samples; negatives matter to classifier-free guidance alone.
            guidance: [B], at least 1. With classifier-free guidance samples with 1 follow the prompt alone,
                and need no second row.

        Returns:
            [B, C, H, W], in the network's precision.
        """
        x, timesteps = x.to(self.network.dtype), timesteps.to(x.device)
        if self.guidance_kind != "classifier-free":
            return self._call(x, timesteps, prompts, guidance.to(x.device))
        guided = (guidance != 1).nonzero().flatten()
        scales, guided = guidance[guided].to(x.device), guided.to(x.device)
        output = self._call(
            torch.cat([x, x[guided]]),
            torch.cat([timesteps, timesteps[guided]]),
            Conditions.cat([prompts, negatives[guided]]),
            guidance,
        )
        conditional, unconditional = output[: len(x)], output[len(x) :]
        moved = classifier_free_guidance(unconditional, conditional[guided], scales)
        return conditional.index_copy(0, guided, moved)

    def denoiser(self, prompts: Sequence[str], guidance: Tensor, reference: Tensor | None = None) -> Denoiser:
        """The network for these prompts without negative ones, as `sample` calls it.

        Args:
            guidance: [B].
            reference: latents [B, C, H, W] of the pictures to be edited, for a model that edits.
        """
        positives = self.encode(prompts)
        negatives = positives
        if self.guidance_kind == "classifier-free":
            negatives = self.encode([""] * len(prompts), negative=True)
        if reference is not None:
            reference = reference.to(self.device)
            positives, negatives = positives.with_reference(reference), negatives.with_reference(reference)
        return lambda x, timesteps: self.denoise(x, timesteps, positives, negatives, guidance)

    @property
    def fingerprint(self) -> str:
        """Tells models apart: SHA-256, in hex, of the network's config and of the start of each weight."""
        digest = hashlib.sha256(repr(sorted(self.network.config.items(), key=str)).encode())
        for name, weight in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + weight.flatten()[:64].float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] as pictures [B, 3, H · scale, W · scale], about 0 … 1 and not clipped."""
        return decode(self.vae, latents)

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] from 0 to 1 as latents, float32: the middle of what the autoencoder finds
        likely, so that the same picture always is the same latents."""
        encoded = self.vae.encode((2 * pictures - 1).to(self.vae.device, self.vae.dtype))
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        shift, factor = _scaling(self.vae)
        return (z.float() - shift) * factor


def decode(vae: Any, latents: Tensor) -> Tensor:
    """See `LatentDiffusion.decode`; also for another decoder of the same latents, such as a smaller one."""
    shift, factor = _scaling(vae)
    return vae.decode((latents / factor + shift).to(vae.dtype), return_dict=False)[0] / 2 + 0.5


def _scaling(vae: Any) -> tuple[float, float]:
    return getattr(vae.config, "shift_factor", None) or 0.0, vae.config.scaling_factor

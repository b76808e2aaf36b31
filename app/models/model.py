"""A model that makes pictures, with what is known of it."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from app.jobs.uploads import fit_picture
from app.models.facts import ModelFacts
from app.models.memory import split_on_oom
from app.models.safety import SafetyChecker
from solver.diffusion import Conditions, LatentDiffusion, decode

REMEMBERED_PROMPTS = 256


@dataclass(frozen=True, eq=False)
class PreviewDecoder:
    """A small decoder of a model's latents, on its device: diffusers' AutoencoderTiny. name: for records."""

    name: str
    network: Any = field(repr=False)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the pipelines keep them [B, C, H, W] as pictures, see `LatentDiffusion.decode`."""
        return decode(self.network, latents)


@dataclass(frozen=True, eq=False)
class ImageModel:
    """A text-to-image latent diffusion model, ready to run on one device.

    remembered: conditions of recent prompts, by whether they are negative, and the prompt. safety: what looks
    at its pictures before they are shown, if anything does. preview_decoder: what draws previews faster than
    the model's own autoencoder, if there is something.
    """

    diffusion: LatentDiffusion
    facts: ModelFacts
    remembered: OrderedDict[tuple[bool, str], Conditions] = field(default_factory=OrderedDict, repr=False)
    safety: SafetyChecker | None = field(default=None, repr=False)
    preview_decoder: PreviewDecoder | None = None

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.diffusion.device

    @property
    def offloaded(self) -> bool:
        """Whether one part of it at a time is on the device, so that they can't work side by side."""
        return hasattr(self.diffusion.network, "_hf_hook")

    @torch.inference_mode()
    def encode_each(self, prompts: Sequence[str], *, negative: bool = False) -> list[Conditions]:
        """Conditions of one sample for each prompt, as the stock pipeline makes them.

        Recent ones are remembered, and all others are made in one call. For one thread at a time.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if (negative, prompt) not in self.remembered]
        if new:
            encoded = self.diffusion.encode(new, negative=negative)
            for i, prompt in enumerate(new):
                self.remembered[negative, prompt] = encoded[i : i + 1]
        for prompt in prompts:
            self.remembered.move_to_end((negative, prompt))
        each = [self.remembered[negative, prompt] for prompt in prompts]
        while len(self.remembered) > REMEMBERED_PROMPTS:
            self.remembered.popitem(last=False)
        return each

    def encode_starts(
        self, files: Sequence[bytes | None], width: int, height: int
    ) -> list[torch.Tensor | None]:
        """Latents [C, H, W] of the pictures in files, cut and scaled to so many pixels; None of None.

        Raises RequestError, in words, for a file that is no such picture.
        """
        distinct = list(dict.fromkeys(filter(None, files)))
        pictures = [fit_picture(file, width, height) for file in distinct]
        latents = dict(zip(distinct, split_on_oom(self._encode_pictures, pictures), strict=True))
        return [latents[file] if file else None for file in files]

    @torch.inference_mode()
    def _encode_pictures(self, pictures: Sequence[Image.Image]) -> list[torch.Tensor]:
        levels = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
        return list(self.diffusion.encode_pictures(levels.permute(0, 3, 1, 2).float() / 255))

    @torch.inference_mode()
    def pictures(self, latents: torch.Tensor, *, preview: bool = False) -> list[Image.Image]:
        """Latents [B, C, H, W] as B RGB pictures; with `preview` by the preview decoder, if there is one.

        Raises FloatingPointError where a number overflowed on the way, which would be a black picture.
        """
        decoder = (preview and self.preview_decoder) or self.diffusion
        decoded = decoder.decode(latents.to(self.device)).float()
        if not decoded.isfinite().all():
            raise FloatingPointError(
                "a picture is no numbers: something overflowed in the network or decoder"
            )
        levels = (decoded * 255).round().clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]

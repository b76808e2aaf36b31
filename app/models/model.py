"""A model that is ready to make pictures, with its metadata."""

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
from solver.diffusion import Conditions, LatentDiffusion, PipelineAsItIs, decode

REMEMBERED_PROMPTS = 256


@dataclass(frozen=True, eq=False)
class PreviewDecoder:
    """A small decoder of a model's latents (diffusers' AutoencoderTiny), on the model's device.

    Attributes:
        name: as records call it.
        network: the autoencoder.
        pipeline: that of the latents, where it is run as it is and so knows alone what they are.
    """

    name: str
    network: Any = field(repr=False)
    pipeline: PipelineAsItIs | None = field(default=None, repr=False)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents [B, C, H, W], scaled as in the pipelines; see `LatentDiffusion.decode`."""
        if self.pipeline is None:
            return decode(self.network, latents)
        own = self.pipeline.vae.config
        shift, factor = getattr(own, "shift_factor", None) or 0.0, own.scaling_factor
        return self.pipeline.decode_with(
            lambda raw: 2 * decode(self.network, (raw - shift) * factor) - 1, latents
        )


@dataclass(frozen=True, eq=False)
class ImageModel:
    """A text-to-image latent diffusion model, ready to run on one device.

    Attributes:
        diffusion: the networks.
        facts: metadata.
        remembered: conditions of recent prompts, by (whether negative, prompt).
        safety: checks its pictures before they are shown, if not None.
        preview_decoder: draws previews faster than the model's own autoencoder, if not None.
    """

    diffusion: LatentDiffusion
    facts: ModelFacts
    remembered: OrderedDict[tuple[bool, str], Conditions] = field(default_factory=OrderedDict, repr=False)
    safety: SafetyChecker | None = field(default=None, repr=False)
    preview_decoder: PreviewDecoder | None = None

    @property
    def device(self) -> torch.device:
        """Device that it runs on."""
        return self.diffusion.device

    @property
    def offloaded(self) -> bool:
        """Whether only one component at a time is on the device, so that none can run concurrently."""
        return hasattr(self.diffusion.network, "_hf_hook")

    @torch.inference_mode()
    def encode_each(self, prompts: Sequence[str], *, negative: bool = False) -> list[Conditions]:
        """Encode prompts as the stock pipeline does; return the conditions of one sample per prompt.

        Recent prompts are remembered; all others are encoded in one call. Not thread-safe.
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
        """Encode picture files, cropped and scaled to a size in pixels, as latents [C, H, W]; None as None.

        Raises:
            RequestError: a file is not a picture.
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
        """Decode latents [B, C, H, W] into B RGB pictures.

        Args:
            preview: use the preview decoder, if there is one.

        Raises:
            FloatingPointError: a value overflowed in the network or decoder; the picture would be black.
        """
        decoder = (preview and self.preview_decoder) or self.diffusion
        decoded = decoder.decode(latents.to(self.device)).float()
        if not decoded.isfinite().all():
            raise FloatingPointError("a picture contains NaN or infinity: the network or decoder overflowed")
        levels = (decoded * 255).round().clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]

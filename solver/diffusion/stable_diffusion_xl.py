"""Stable Diffusion XL: a UNet that reads two CLIP text encoders, and is told sizes (Podell et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from solver.diffusion.conditions import Conditions
from solver.diffusion.stable_diffusion import StableDiffusion
from solver.diffusion.text import encode_clip, prompt_length, zeros_where_empty


class StableDiffusionXL(StableDiffusion):
    """Conditions: text [B, tokens, both widths], pooled [B, width]. It is told that a picture was never
    smaller nor cut, which is what the pipeline tells it."""

    needs: ClassVar[tuple[str, ...]] = (
        "unet",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
    )

    @property
    def max_prompt_tokens(self) -> int:
        """See `LatentDiffusion`."""
        return min(prompt_length(self.parts[f"tokenizer{n}"], self.parts[f"text_encoder{n}"]) for n in _BOTH)

    def _encode(self, prompts: Sequence[str], negative: bool) -> Conditions:
        length = self.max_prompt_tokens
        encoded = [
            encode_clip(self.parts[f"tokenizer{n}"], self.parts[f"text_encoder{n}"], prompts, length)
            for n in _BOTH
        ]
        tensors = {"text": torch.cat([hidden for hidden, _ in encoded], -1), "pooled": encoded[-1][1]}
        if negative and self.settings.get("force_zeros_for_empty_prompt", True):
            tensors = {name: zeros_where_empty(prompts, tensor) for name, tensor in tensors.items()}
        return Conditions(tensors)

    def _call(self, x: Tensor, timesteps: Tensor, conditions: Conditions, guidance: Tensor) -> Tensor:
        text, pooled = conditions.tensors["text"], conditions.tensors["pooled"]
        height, width = (self.scale * edge for edge in x.shape[-2:])
        original, corner, target = (height, width), (0, 0), (height, width)
        sizes = torch.tensor([[*original, *corner, *target]], dtype=text.dtype, device=x.device)
        return self.network(
            x,
            timesteps,
            encoder_hidden_states=text,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes.expand(len(x), -1)},
            return_dict=False,
        )[0]


_BOTH = ("", "_2")

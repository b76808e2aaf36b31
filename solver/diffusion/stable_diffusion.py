"""Stable Diffusion 1.x and 2.x: a UNet that reads one CLIP text encoder (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from solver.diffusion.conditions import Conditions
from solver.diffusion.model import LatentDiffusion
from solver.diffusion.text import pad, prompt_length


class StableDiffusion(LatentDiffusion):
    """Conditions: text [B, tokens, width]."""

    network_name = "unet"
    needs: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer")

    @staticmethod
    def native_shape(parts: Mapping[str, Any]) -> tuple[int, int, int]:
        """See `LatentDiffusion`."""
        config = parts["unet"].config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    @property
    def multiple(self) -> int:
        """The UNet halves latents; the pipeline asks for multiples of 8 pixels, and so do we."""
        return max(8, self.scale)

    @property
    def max_prompt_tokens(self) -> int:
        """See `LatentDiffusion`."""
        return prompt_length(self.parts["tokenizer"], self.parts["text_encoder"])

    def _encode(self, prompts: Sequence[str], negative: bool) -> Conditions:
        encoder = self.parts["text_encoder"]
        tokens = pad(self.parts["tokenizer"], prompts, self.max_prompt_tokens).to(self.device)
        mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        return Conditions({"text": encoder(tokens.input_ids, attention_mask=mask)[0]})

    def _call(self, x: Tensor, timesteps: Tensor, conditions: Conditions, guidance: Tensor) -> Tensor:
        text = conditions.tensors["text"]
        return self.network(x, timesteps, encoder_hidden_states=text, return_dict=False)[0]

"""Stable Diffusion 3 and 3.5: a transformer on a flow that reads two CLIP encoders and, where it is there, T5
(Esser et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from solver.diffusion.conditions import Conditions
from solver.diffusion.model import LatentDiffusion
from solver.diffusion.text import encode_clip, encode_t5, prompt_length

T5_TOKENS = 256


class StableDiffusion3(LatentDiffusion):
    """Conditions: text [B, CLIP tokens + T5 tokens, width], pooled [B, both widths]. Without T5 its tokens
    are zeros, which the network was trained to bear."""

    network_name = "transformer"
    needs: ClassVar[tuple[str, ...]] = (
        "transformer",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    )
    may_lack: ClassVar[tuple[str, ...]] = ("text_encoder_3", "tokenizer_3")
    patch = 2

    @staticmethod
    def native_shape(parts: Mapping[str, Any]) -> tuple[int, int, int]:
        """See `LatentDiffusion`."""
        config = parts["transformer"].config
        return config.in_channels, config.sample_size, config.sample_size

    @property
    def tokenizer(self) -> Any:
        """See `LatentDiffusion`."""
        return self.parts["tokenizer_3"] if self._reads_t5 else self.parts["tokenizer"]

    @property
    def max_prompt_tokens(self) -> int:
        """See `LatentDiffusion`; the CLIP encoders read the start of what is longer than they can."""
        return T5_TOKENS if self._reads_t5 else self._clip_tokens

    @property
    def _reads_t5(self) -> bool:
        return self.parts.get("text_encoder_3") is not None

    @property
    def _clip_tokens(self) -> int:
        return prompt_length(self.parts["tokenizer"], self.parts["text_encoder"])

    def _encode(self, prompts: Sequence[str], negative: bool) -> Conditions:
        (one, pooled), (two, pooled_2) = (
            encode_clip(
                self.parts[f"tokenizer{n}"], self.parts[f"text_encoder{n}"], prompts, self._clip_tokens
            )
            for n in ("", "_2")
        )
        clip = torch.cat([one, two], -1)
        if self._reads_t5:
            t5 = encode_t5(self.parts["tokenizer_3"], self.parts["text_encoder_3"], prompts, T5_TOKENS)
        else:
            t5 = clip.new_zeros(len(prompts), T5_TOKENS, self.network.config.joint_attention_dim)
        clip = torch.nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return Conditions({"text": torch.cat([clip, t5], -2), "pooled": torch.cat([pooled, pooled_2], -1)})

    def _call(self, x: Tensor, timesteps: Tensor, conditions: Conditions, guidance: Tensor) -> Tensor:
        text, pooled = conditions.tensors["text"], conditions.tensors["pooled"]
        return self.network(x, text, pooled, timesteps, return_dict=False)[0]

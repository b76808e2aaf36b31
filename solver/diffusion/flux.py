"""FLUX.1: a transformer on a flow over latents packed two by two, which reads T5 and a pooled CLIP prompt and
is told the guidance scale; and Kontext, which sees the picture to be edited beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from solver.diffusion.conditions import Conditions
from solver.diffusion.model import GuidanceKind, LatentDiffusion
from solver.diffusion.text import encode_t5, pad, prompt_length

T5_TOKENS = 512
# Latents along the edge of the pictures that it was trained for; no config says so.
NATIVE = 128


class Flux(LatentDiffusion):
    """Conditions: text [B, tokens, width], pooled [B, width], and of Kontext reference [B, C, H, W]."""

    network_name = "transformer"
    needs: ClassVar[tuple[str, ...]] = (
        "transformer",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
    )
    patch = 2

    @staticmethod
    def native_shape(parts: Mapping[str, Any]) -> tuple[int, int, int]:
        """See `LatentDiffusion`."""
        return parts["transformer"].config.in_channels // 4, NATIVE, NATIVE

    @property
    def guidance_kind(self) -> GuidanceKind:
        """See `LatentDiffusion`; models distilled to few steps have none."""
        return "embedded" if self.network.config.guidance_embeds else "none"

    @property
    def tokenizer(self) -> Any:
        """See `LatentDiffusion`."""
        return self.parts["tokenizer_2"]

    @property
    def max_prompt_tokens(self) -> int:
        """See `LatentDiffusion`; the CLIP encoder reads the start of what is longer than it can."""
        return T5_TOKENS

    def _encode(self, prompts: Sequence[str], negative: bool) -> Conditions:
        clip = self.parts["text_encoder"]
        tokens = pad(self.parts["tokenizer"], prompts, prompt_length(self.parts["tokenizer"], clip))
        pooled = clip(tokens.input_ids.to(clip.device)).pooler_output
        text = encode_t5(self.parts["tokenizer_2"], self.parts["text_encoder_2"], prompts, T5_TOKENS)
        return Conditions({"text": text, "pooled": pooled})

    def _call(self, x: Tensor, timesteps: Tensor, conditions: Conditions, guidance: Tensor) -> Tensor:
        told = conditions.tensors
        tokens, places = pack(x), _places(x, 0)
        if "reference" in told:
            reference = told["reference"].to(x.dtype)
            tokens = torch.cat([tokens, pack(reference)], 1)
            places = torch.cat([places, _places(reference, 1)])
        output = self.network(
            hidden_states=tokens,
            timestep=timesteps / self.scheduler_config.get("num_train_timesteps", 1000),
            guidance=guidance.float() if self.guidance_kind == "embedded" else None,
            pooled_projections=told["pooled"],
            encoder_hidden_states=told["text"],
            txt_ids=torch.zeros(told["text"].shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=places,
            return_dict=False,
        )[0]
        return unpack(output[:, : x[0, 0].numel() // 4], x.shape)


class FluxKontext(Flux):
    """Edits the picture among its conditions by instructions; without one it draws as FLUX does."""

    edits = True


def pack(x: Tensor) -> Tensor:
    """Latents [B, C, H, W] as tokens [B, H / 2 · W / 2, C · 4]."""
    B, C, H, W = x.shape
    return x.view(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, H * W // 4, C * 4)


def unpack(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Tokens as latents of this shape [B, C, H, W]; undoes `pack`."""
    B, C, H, W = shape
    return tokens.view(B, H // 2, W // 2, C, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)


def _places(x: Tensor, picture: int) -> Tensor:
    """Where each token is [H / 2 · W / 2, 3]: which picture, row and column."""
    rows, columns = (torch.arange(edge // 2, device=x.device, dtype=x.dtype) for edge in x.shape[-2:])
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.full_like(grid[:, :1], picture), grid], 1)

"""Prompts as tokens, and as what text encoders of the CLIP and T5 kinds make of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TOKENIZING = threading.Lock()


def tokenize(tokenizer: Any, text: str | list[str], **options: Any) -> Any:
    """What a tokenizer makes of prompts, from any thread: the tokenizer itself bears but one."""
    with TOKENIZING:
        return tokenizer(text, **options)


def prompt_length(tokenizer: Any, encoder: Any, most: int | None = None) -> int:
    """How many tokens, those that frame it included, a prompt may have; `most` where neither says."""
    positions = getattr(encoder.config, "max_position_embeddings", None) or tokenizer.model_max_length
    return min(tokenizer.model_max_length, positions, most or positions)


def pad(tokenizer: Any, prompts: Sequence[str], length: int) -> Any:
    """Token ids and mask [B, length] of prompts that are cut or filled up."""
    return tokenize(
        tokenizer,
        list(prompts),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )


def encode_clip(tokenizer: Any, encoder: Any, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """The last layer but one [B, length, width], and the encoder's first output: pooled [B, width], where it
    has a projection."""
    output = encoder(pad(tokenizer, prompts, length).input_ids.to(encoder.device), output_hidden_states=True)
    return output.hidden_states[-2], output[0]


def encode_t5(tokenizer: Any, encoder: Any, prompts: Sequence[str], length: int) -> Tensor:
    """The last layer [B, length, width]; as in the pipelines, what fills up is not masked."""
    return encoder(pad(tokenizer, prompts, length).input_ids.to(encoder.device))[0]


def zeros_where_empty(prompts: Sequence[str], tensor: Tensor) -> Tensor:
    """The tensor [B, ...] with zeros in the rows of empty prompts."""
    full = torch.tensor([bool(prompt) for prompt in prompts], device=tensor.device)
    return tensor * full.view(-1, *[1] * (tensor.dim() - 1))

"""Tiny pipelines with random weights, one of each family, saved as the real ones are."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

EDGE = 16
"""Of the pictures in pixels; latents have half of it."""

SD_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
WIDTH, WIDER, PROJECTED = 16, 24, 8


def build(family: str, folder: Path) -> Path:
    """Save a tiny pipeline of a family, one of `FAMILIES`, in a folder."""
    torch.manual_seed(0)
    pipe = FAMILIES[family]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            _enliven(part)
    pipe.save_pretrained(folder)
    return folder


def _enliven(module: torch.nn.Module) -> None:
    """Random weights where networks begin with zeros, so that everything has an effect."""
    for parameter in map(torch.Tensor.detach, module.parameters()):
        if parameter.std() == 0 or parameter.numel() == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.mean()), std=0.1)


def clip_tokenizer() -> CLIPTokenizer:
    letters = [*string.ascii_lowercase, *(letter + "</w>" for letter in string.ascii_lowercase)]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def clip(projection: bool, act: str = "quick_gelu", *, width: int = WIDTH, layers: int = 2) -> Any:
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        projection_dim=PROJECTED,
        hidden_act=act,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5_tokenizer(length: int) -> T5TokenizerFast:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in string.ascii_lowercase]
    return T5TokenizerFast(vocab=special + letters, extra_ids=0, model_max_length=length)


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=30, d_model=2 * WIDTH, d_ff=32, d_kv=8, num_layers=2, num_heads=2,
            is_encoder_decoder=False, use_cache=False, feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


def autoencoder(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=EDGE,
        **options,
    )


def unet(text_width: int, **options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=EDGE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **options,
    )


def stable_diffusion(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip(False),
        tokenizer=clip_tokenizer(),
        unet=unet(WIDTH),
        scheduler=DDIMScheduler(**SD_SCHEDULE, clip_sample=False, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    # By its width and its tenth layer the second encoder is told from the first in a file that has both.
    second = clip(True, "gelu", width=WIDER, layers=10)
    network = unet(
        WIDTH + WIDER,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + PROJECTED,
    )
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=clip(False),
        text_encoder_2=second,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=network,
        scheduler=EulerDiscreteScheduler(**SD_SCHEDULE),
    )


def stable_diffusion_3(with_t5: bool = True) -> StableDiffusion3Pipeline:
    network = SD3Transformer2DModel(
        sample_size=EDGE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * PROJECTED,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(
            scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip(True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(True, "gelu"),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5() if with_t5 else None,
        tokenizer_3=t5_tokenizer(256) if with_t5 else None,
    )


def flux(pipeline: type = FluxPipeline, guidance_embeds: bool = True) -> Any:
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    return pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(
            scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip(False),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(512),
        transformer=network,
    )


FAMILIES = {
    "stable_diffusion": stable_diffusion,
    "stable_diffusion_v": lambda: stable_diffusion("v_prediction"),
    "stable_diffusion_xl": stable_diffusion_xl,
    "stable_diffusion_3": stable_diffusion_3,
    "stable_diffusion_3_without_t5": lambda: stable_diffusion_3(with_t5=False),
    "flux": flux,
    "flux_distilled": lambda: flux(guidance_embeds=False),
    "flux_kontext": lambda: flux(FluxKontextPipeline),
}
# One of each kind; the others are the same with a part left out.
KINDS = (
    "stable_diffusion",
    "stable_diffusion_v",
    "stable_diffusion_xl",
    "stable_diffusion_3",
    "flux",
    "flux_kontext",
)

"""Tiny pipelines with random weights of the kinds that run as they are, saved as the real ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    QwenImageEditPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    BatchFeature,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests import tiny_models
from tests.tiny_models import WIDTH, t5, t5_tokenizer

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}  # fmt: skip


def build(kind: str, folder: Path) -> Path:
    """Save a tiny pipeline of a kind, one of `KINDS`, in a folder."""
    torch.manual_seed(0)
    pipe = KINDS[kind]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            tiny_models._enliven(part)
    pipe.save_pretrained(folder)
    return folder


def qwen_tokenizer() -> Qwen2Tokenizer:
    """One token a byte."""
    words = [*bytes_to_unicode().values(), *SPECIAL]
    tokenizer = Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], extra_special_tokens=[*SPECIAL[1:]]
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen3(layers: int, model: type = Qwen3Model) -> Any:
    return model(Qwen3Config(vocab_size=272, head_dim=8, num_hidden_layers=layers, **TEXT))


def autoencoder(**options: Any) -> AutoencoderKL:
    """Of eight pixels a latent, as all of these have."""
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.36,
        shift_factor=0.12,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **options,
    )


def z_image() -> ZImagePipeline:
    network = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=autoencoder(),
        text_encoder=qwen3(3),
        tokenizer=qwen_tokenizer(),
        transformer=network,
    )


def chroma() -> ChromaPipeline:
    network = ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, axes_dims_rope=(4, 4, 8), approximator_num_channels=8,
        approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(512),
        transformer=network,
        image_encoder=None,
        feature_extractor=None,
    )


def qwen_image() -> QwenImagePipeline:
    network = QwenImageTransformer2DModel(
        in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    text = {
        **TEXT, "vocab_size": 272, "num_hidden_layers": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }  # fmt: skip
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=1.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        vae=AutoencoderKLQwenImage(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision, vocab_size=272)
        ),
        tokenizer=qwen_tokenizer(),
        transformer=network,
    )  # fmt: skip


class Processor:
    """Stands for transformers' Qwen2VLProcessor, which cannot be made without torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.image_processor = Qwen2VLImageProcessor(
            patch_size=14, temporal_patch_size=2, merge_size=2, min_pixels=28 * 28, max_pixels=56 * 56
        )

    def __call__(self, text: list[str], images: Any, padding: bool, return_tensors: str) -> Any:
        seen = self.image_processor(images=images, return_tensors=return_tensors)
        places = int(seen["image_grid_thw"][0].prod()) // 4
        longer = [each.replace("<|image_pad|>", "<|image_pad|>" * places) for each in text]
        tokens = self.tokenizer(longer, padding=padding, return_tensors=return_tensors)
        return BatchFeature({**tokens, **seen})


def qwen_image_edit() -> QwenImageEditPipeline:
    """It cannot draw without a picture."""
    parts = qwen_image().components
    tokenizer = parts["tokenizer"]
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [*SPECIAL[1:], "<|vision_start|>", "<|image_pad|>"]}
    )
    encoder = parts["text_encoder"].config
    encoder.vision_start_token_id, encoder.image_token_id = tokenizer.convert_tokens_to_ids(
        ["<|vision_start|>", "<|image_pad|>"]
    )
    return QwenImageEditPipeline(**parts, processor=Processor(tokenizer))


def krea2() -> Krea2Pipeline:
    network = Krea2Transformer2DModel(
        in_channels=64, num_layers=2, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=WIDTH, num_text_layers=2,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=16,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    text = {
        **TEXT, "vocab_size": 272, "num_hidden_layers": 2, "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }  # fmt: skip
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=6400),
        vae=AutoencoderKLQwenImage(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        text_encoder=Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)),
        tokenizer=qwen_tokenizer(),
        transformer=network,
        text_encoder_select_layers=(1, 2),
    )


def flux2_klein() -> Flux2KleinPipeline:
    network = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * WIDTH, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 4, 8, 8), norm_num_groups=2, latent_channels=4, layers_per_block=1,
    )  # fmt: skip
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=qwen3(28, Qwen3ForCausalLM),
        tokenizer=qwen_tokenizer(),
        transformer=network,
    )


KINDS = {
    "z_image": z_image,
    "chroma": chroma,
    "qwen_image": qwen_image,
    "krea2": krea2,
    "flux2_klein": flux2_klein,
}

"""Stable Diffusion pipelines as one file, whose tensors are called as their authors did (CompVis' LDM)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_ldm(pipe: Any, path: Path) -> Path:
    """Save a Stable Diffusion 1.5 or XL as people download it: in half precision, with what else is there."""
    tensors = {
        f"model.diffusion_model.{_unet(name, pipe.unet.config)}": tensor
        for name, tensor in pipe.unet.state_dict().items()
    }
    for name, tensor in pipe.vae.state_dict().items():
        called = _vae(name, len(pipe.vae.config.block_out_channels))
        convolution = ".attn_1." in called and tensor.dim() == 2  # where diffusers has linear layers
        tensors[f"first_stage_model.{called}"] = tensor[..., None, None] if convolution else tensor
    second = getattr(pipe, "text_encoder_2", None)
    first = "conditioner.embedders.0.transformer" if second else "cond_stage_model.transformer"
    for name, tensor in pipe.text_encoder.state_dict().items():
        tensors[f"{first}.text_model.{name.removeprefix('text_model.')}"] = tensor
    if second:
        tensors |= _open_clip(second.state_dict(), "conditioner.embedders.1.model.")
    halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    unneeded = {
        "alphas_cumprod": pipe.scheduler.alphas_cumprod.clone(),
        "betas": pipe.scheduler.betas.clone(),
        "model_ema.num_updates": torch.tensor(1),
        f"{first}.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    save_file(halves | unneeded, path)
    return path


def _open_clip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """OpenCLIP has query, key and value in one, and its projection the other way round."""
    found = {}
    for name, tensor in tensors.items():
        called = name.removeprefix("text_model.")
        for theirs, ours in OPEN_CLIP.items():
            called = called.replace(theirs, ours)
        if "q_proj" in name:
            whole = torch.cat(
                [tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            )
            found[prefix + called.replace("q_proj.", "in_proj_")] = whole
        elif called == "text_projection.weight":
            found[f"{prefix}text_projection"] = tensor.T
        elif "k_proj" not in name and "v_proj" not in name:
            found[prefix + called] = tensor
    return found


def _unet(name: str, config: Any) -> str:
    """There blocks are numbered through; the samplers count as blocks of their own or as parts of them."""
    layers = config.layers_per_block
    for theirs, ours in UNET_ENDS.items():
        if name.startswith(f"{theirs}."):
            return name.replace(theirs, ours, 1)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, number, rest = found.groups()
        place = 2 * int(number) + (kind == "attentions")
        return f"middle_block.{place}.{_in_resnet(rest) if kind == 'resnets' else rest}"
    found = re.fullmatch(
        r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", name
    )
    assert found, name
    way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if way == "down":
        place = 1 + block * (layers + 1) + layer
        if kind == "downsamplers":
            return f"input_blocks.{place + layers}.0.{rest.replace('conv', 'op', 1)}"
    else:
        place = block * (layers + 1) + layer
        if kind == "upsamplers":
            attends = config.up_block_types[block].startswith("CrossAttn")
            return f"output_blocks.{place + layers}.{2 if attends else 1}.{rest}"
    inner = _in_resnet(rest) if kind == "resnets" else rest
    return f"{'input' if way == 'down' else 'output'}_blocks.{place}.{0 if kind == 'resnets' else 1}.{inner}"


def _in_resnet(rest: str) -> str:
    part, _, which = rest.rpartition(".")
    return f"{RESNET[part]}.{which}"


def _vae(name: str, stages: int) -> str:
    """There the decoder's stages are numbered from the picture's side."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        head, tail = name.split("mid_block.attentions.0.")
        part, _, which = tail.rpartition(".")
        return f"{head}mid.attn_1.{VAE_ATTENTION[part]}.{which}"
    name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{stages - 1 - int(found[1])}", name)
    name = name.replace("resnets.", "block.")
    return name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")

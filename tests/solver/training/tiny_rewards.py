"""Tiny random networks in the real layouts, in place of the pretrained ones that rewards look through."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solver.training.rewards.lpips import LAYERS, alexnet

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP_MEAN = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
TIMM = {"input_size": [3, 299, 299], "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}


def processor_config(name: str, size: int) -> dict[str, Any]:
    """A preprocessor_config.json as the repository in the table has it, for network input of `size`."""
    configs: dict[str, dict[str, Any]] = {
        "clip": {
            "feature_extractor_type": "CLIPFeatureExtractor",
            "do_resize": True,
            "size": size,
            "do_center_crop": True,
            "crop_size": size,
            "resample": 3,
            "do_normalize": True,
            **CLIP_MEAN,
        },
        "dino": {
            "image_processor_type": "BitImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": size * 8 // 7},
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            **IMAGENET,
        },
        "depth": {
            "image_processor_type": "DPTImageProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size},
            "keep_aspect_ratio": True,
            "ensure_multiple_of": 14,
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "do_pad": False,
            **IMAGENET,
        },
        "segmentation": {
            "feature_extractor_type": "SegformerFeatureExtractor",
            "do_resize": True,
            "size": size,
            "resample": 2,
            "do_normalize": True,
            "do_reduce_labels": True,
            **IMAGENET,
        },
    }
    return configs[name]


def save(network: Any, folder: Path, config: dict[str, Any]) -> str:
    """Save a network with weights large enough for its outputs to differ between pictures."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.dim() > 1:
                p.normal_(std=2 / p[0].numel() ** 0.5)
            elif name.startswith("head."):
                p.fill_(0.5)
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return str(folder)


def tiny_clip(folder: Path) -> str:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 8, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4}
    config = CLIPConfig(
        text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    return save(CLIPModel(config), folder, processor_config("clip", 32))


def dinov2(**options: Any) -> Any:
    from transformers import Dinov2Config

    return Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1, patch_size=14, **options
    )


def tiny_dino(folder: Path) -> str:
    from transformers import Dinov2Model

    return save(Dinov2Model(dinov2(image_size=28)), folder, processor_config("dino", 28))


def tiny_depth(folder: Path) -> str:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    config = DepthAnythingConfig(
        backbone_config=dinov2(image_size=42, out_indices=[1, 2], reshape_hidden_states=False),
        reassemble_hidden_size=32,
        patch_size=14,
        neck_hidden_sizes=[8, 8],
        reassemble_factors=[2, 1],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    return save(DepthAnythingForDepthEstimation(config), folder, processor_config("depth", 42))


def tiny_segmentation(folder: Path) -> str:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8] * 4,
        num_attention_heads=[1] * 4,
        sr_ratios=[4, 2, 1, 1],
        decoder_hidden_size=8,
        num_labels=5,
    )
    return save(SegformerForSemanticSegmentation(config), folder, processor_config("segmentation", 64))


def tiny_inception(folder: Path) -> str:
    """As a repository of timm has it: no model_type, names of weights without a prefix."""
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", pretrained=False)
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    cfg = {**TIMM, "input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def tiny_lpips(folder: Path) -> str:
    """Random weights of AlexNet's real shapes; of LPIPS's too, unless torchmetrics is there with its own."""
    torch.manual_seed(0)
    network = folder / "site/torchmetrics/functional/image/lpips_models"
    network.mkdir(parents=True)
    (folder / "site/torchmetrics/__init__.py").touch()
    linear = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, (c, *_) in enumerate(LAYERS)}
    torch.save(linear, network / "alex.pth")
    state = {f"features.{k}": v for k, v in alexnet().state_dict().items()}
    torch.save(state, folder / "alexnet.pth")
    if find_spec("torchmetrics") is None:
        sys.path.append(str(folder / "site"))
    return str(folder / "alexnet.pth")


def tiny_reader(folder: Path) -> str:
    from checkpoints.readers import ConvSceneReader

    torch.manual_seed(0)
    attributes = [("time", ["day", "night"]), ("water", ["none", "lake", "sea"]), ("boat", ["none", "boat"])]
    ConvSceneReader(attributes, widths=(8, 8, 8)).save_pretrained(folder)
    return str(folder)


TINY: dict[str, Callable[[Path], str]] = {
    "reader": tiny_reader,
    "labels": tiny_reader,
    "clip": tiny_clip,
    "dino": tiny_dino,
    "depth": tiny_depth,
    "segmentation": tiny_segmentation,
    "inception": tiny_inception,
    "lpips": tiny_lpips,
}


def pictures(count: int, height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    """Blots of all sizes and some noise, [count, 3, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.full((count, 3, height, width), 0.5)
    for size in (2, 4, 8, 16):
        blots = torch.randn(count, 3, size, size, generator=generator)
        total += 0.15 * torch.nn.functional.interpolate(blots, (height, width), mode="bilinear")
    return (total + 0.02 * torch.randn(total.shape, generator=generator)).clamp(0, 1)

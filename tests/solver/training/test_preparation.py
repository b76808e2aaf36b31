"""What networks are shown is what the libraries' own image processors would show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from solver.training.rewards import RewardError
from solver.training.rewards.preparation import Preparation, read_preparation
from tests.solver.training.tiny_rewards import TIMM, pictures, processor_config


@pytest.mark.parametrize(
    ("name", "size"), [("clip", 224), ("dino", 224), ("depth", 518), ("segmentation", 512)]
)
@pytest.mark.parametrize("shape", [(256, 256), (120, 161), (700, 530)])
def test_preparation_is_the_image_processors(
    name: str, size: int, shape: tuple[int, int], tmp_path: Path
) -> None:
    """To the rounding to whole bytes that Pillow does after each of two passes."""
    from transformers import AutoImageProcessor

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor_config(name, size)))
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    check_preparation(processor, shape, std=min(read_preparation(processor).std))


@pytest.mark.parametrize("shape", [(256, 256), (120, 160), (700, 530)])
def test_preparation_is_timms(shape: tuple[int, int]) -> None:
    pytest.importorskip("timm")
    from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

    cfg = {**TIMM, "mean": [0.4, 0.5, 0.6], "std": [0.5, 0.5, 0.5]}
    check_preparation(TimmWrapperImageProcessor(pretrained_cfg=cfg), shape, std=0.5)


def check_preparation(processor: Any, shape: tuple[int, int], std: float) -> None:
    whole = (255 * pictures(1, *shape)[0]).round().byte()
    image = Image.fromarray(np.asarray(whole.permute(1, 2, 0)))
    expected = processor(images=image, return_tensors="pt")["pixel_values"]
    found = read_preparation(processor)(whole[None] / 255)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1.5 / 255 / std


def test_preparation_without_resizing() -> None:
    as_is = Preparation(None, "", None, (0.0,), (1.0,))
    x = pictures(2)
    assert torch.equal(as_is(x), x)


@pytest.mark.parametrize(
    "change",
    [
        {"resample": 1},
        {"do_pad": True},
        {"do_rescale": False},
        {"size": {"shortest_edge": 8, "longest_edge": 9}},
    ],
)
def test_preparations_of_other_kinds_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    config = {**processor_config("depth", 42), **change}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(RewardError, match="is not supported; choose"):
        read_preparation(AutoImageProcessor.from_pretrained(tmp_path, backend="pil"))

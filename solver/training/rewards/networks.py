"""Rewards that look through a network: the embedded model's scene reader, and pretrained ones of the hub."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solver.readers import reader_class
from solver.training.rewards.preparation import read_preparation
from solver.training.rewards.reward import Part, RewardError

Similarity = Callable[[Tensor, Tensor], Tensor]
OPTIONAL = "requirements-rewards.txt"
"""The packages that only some rewards need, pinned."""


def load(cls: Any, source: str | Path, advice: str, **options: Any) -> Any:
    """A network by its class's `from_pretrained`, complete, and with no weight that learns.

    Raises:
        RewardError: nothing to load there, or another network's weights; ends with `advice`.
    """
    try:
        network, report = cls.from_pretrained(source, output_loading_info=True, **options)
    # What a missing, foreign or damaged file raises depends on the library and on where the damage is.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RewardError(f"Cannot load {source} ({reason.rstrip('.')}). {advice}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise RewardError(
            f"{source} is no {cls.__name__}: it lacks {len(missing)} weights, {missing[0]} first. {advice}"
        )
    return network.eval().requires_grad_(False)


def scene_labels(reader: Any, pictures: Tensor) -> Tensor:
    """The number of each attribute's most likely value, float [B, attributes]."""
    with torch.no_grad():
        return torch.stack(
            [logits.argmax(dim=1) for logits in reader(2 * pictures.float() - 1)], dim=1
        ).float()


def scene_reader(
    read: Callable[[Any, Tensor], Tensor], similarity: Similarity
) -> Callable[[str, Path | None, torch.device], Part]:
    """A reward through the scene reader that is kept for rewards, in a folder relative to `readers`."""

    def make(weights: str, readers: Path | None, device: torch.device) -> Part:
        folder = (readers or Path()) / weights
        if not folder.is_dir():
            raise RewardError(
                f"There is no scene reader in {folder}. It comes with the embedded model: give `readers`, "
                "the folder that holds `reward`, or the reader's own folder as NAME:FOLDER."
            )
        reader = load(reader_class("reward"), folder, "Download it again.", torch_dtype=torch.float32).to(
            device
        )
        return Part(lambda pictures: read(reader, pictures), similarity)

    return make


def image_embedding(network: Any, x: Tensor) -> Tensor:
    """The picture's place in the space that it shares with texts, [B, width]."""
    return network.get_image_features(pixel_values=x).pooler_output


def pooled(network: Any, x: Tensor) -> Tensor:
    """The summary of the whole picture, [B, width]."""
    return network(pixel_values=x).pooler_output


def depth(network: Any, x: Tensor) -> Tensor:
    """Depth at every place, in the network's own unit, [B, height, width]."""
    return network(pixel_values=x).predicted_depth


def classes(network: Any, x: Tensor) -> Tensor:
    """The number of the likeliest class at every place of the network's grid, float [B, height, width]."""
    with torch.no_grad():
        return network(pixel_values=x).logits.argmax(dim=1).float()


def pretrained(
    cls: str, read: Callable[[Any, Tensor], Tensor], similarity: Similarity, package: str = ""
) -> Callable[[str, Path | None, torch.device], Part]:
    """A reward through a network of transformers, prepared for as its own image processor would.

    Args:
        cls: the name of its class in transformers.
        package: what that class needs beside transformers.
    """

    def make(weights: str, readers: Path | None, device: torch.device) -> Part:
        if package:
            require(package)
        import transformers

        advice = f"It takes a folder with a {cls} and its image processor, as transformers saves them"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", weights):
            advice += f", or `hf download {weights}` where there is a network"
        network = load(getattr(transformers, cls), weights, f"{advice}.", dtype=torch.float32).to(device)
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(weights, backend="pil")
        except (OSError, ValueError) as error:
            raise RewardError(f"Cannot read the image processor of {weights}. {advice}.") from error
        prepare = read_preparation(processor)
        return Part(lambda pictures: read(network, prepare(pictures)), similarity)

    return make


def require(package: str) -> None:
    """Raise RewardError unless an optional package can be imported."""
    try:
        importlib.import_module(package)
    # torchvision built for another torch raises RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise RewardError(f"This reward needs {package}: pip install -r {OPTIONAL} ({error}).") from error

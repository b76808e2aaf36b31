"""Rewards on the features of a network: the embedded model's scene reader, or a pretrained network."""

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
"""Pinned packages that only some rewards need."""


def load(cls: Any, source: str | Path, advice: str, **options: Any) -> Any:
    """Load a frozen network with `cls.from_pretrained`.

    Raises:
        RewardError: the source is missing, unreadable or of another network; the message ends with `advice`.
    """
    try:
        network, report = cls.from_pretrained(source, output_loading_info=True, **options)
    # A missing, damaged or foreign file raises errors of many types.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RewardError(f"Cannot load {source} ({reason.rstrip('.')}). {advice}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise RewardError(
            f"{source} is not a {cls.__name__}: it lacks {len(missing)} weights ({missing[0]}, …). {advice}"
        )
    return network.eval().requires_grad_(False)


def scene_labels(reader: Any, pictures: Tensor) -> Tensor:
    """Return the index of each attribute's most likely value, float [B, attributes]."""
    with torch.no_grad():
        return torch.stack(
            [logits.argmax(dim=1) for logits in reader(2 * pictures.float() - 1)], dim=1
        ).float()


def scene_reader(
    read: Callable[[Any, Tensor], Tensor], similarity: Similarity
) -> Callable[[str, Path | None, torch.device], Part]:
    """Return a maker of a reward on the scene reader in a folder of `readers`."""

    def make(weights: str, readers: Path | None, device: torch.device) -> Part:
        folder = (readers or Path()) / weights
        if not folder.is_dir():
            raise RewardError(
                f"There is no scene reader in {folder}. It belongs to the embedded model: give its folder of "
                "readers with --readers, or the reader's own folder as NAME:FOLDER."
            )
        reader = load(reader_class("reward"), folder, "Download it again.", torch_dtype=torch.float32).to(
            device
        )
        return Part(lambda pictures: read(reader, pictures), similarity)

    return make


def image_embedding(network: Any, x: Tensor) -> Tensor:
    """Return CLIP's embedding of pictures, [B, width]."""
    return network.get_image_features(pixel_values=x).pooler_output


def pooled(network: Any, x: Tensor) -> Tensor:
    """Return pooled features, [B, width]."""
    return network(pixel_values=x).pooler_output


def depth(network: Any, x: Tensor) -> Tensor:
    """Return the predicted depth, in the network's own unit, [B, height, width]."""
    return network(pixel_values=x).predicted_depth


def classes(network: Any, x: Tensor) -> Tensor:
    """Return the index of the likeliest class at every position, float [B, height, width]."""
    with torch.no_grad():
        return network(pixel_values=x).logits.argmax(dim=1).float()


def pretrained(
    cls: str, read: Callable[[Any, Tensor], Tensor], similarity: Similarity, package: str = ""
) -> Callable[[str, Path | None, torch.device], Part]:
    """Return a maker of a reward on a network of transformers, with its image processor's preparation.

    Args:
        cls: name of its class in transformers.
        read: from the network and its input to features.
        package: another package that the class needs.
    """

    def make(weights: str, readers: Path | None, device: torch.device) -> Part:
        if package:
            require(package)
        import transformers

        advice = f"Give a folder with a {cls} and its image processor, saved by transformers"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", weights):
            advice += f", or run `hf download {weights}` with internet access"
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

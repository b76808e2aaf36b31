"""The table of rewards, and `make_reward`, which makes a reward from its text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from solver.readers import reader_features
from solver.training.rewards import lpips, measures
from solver.training.rewards.networks import (
    classes,
    depth,
    image_embedding,
    pooled,
    pretrained,
    scene_labels,
    scene_reader,
)
from solver.training.rewards.reward import Part, Reward, RewardError, combine

Make = Callable[[str, "Path | None", torch.device], Part]
"""(weights, folder of scene readers, device) → the part."""


@dataclass(frozen=True)
class Kind:
    """One row of the table of rewards.

    Attributes:
        measures: what it measures, with the unit.
        make: makes its part.
        differentiable: whether a gradient reaches the pictures.
        weights: default source of its network: a hub repository, a folder within `readers`, or an address;
            empty for a reward without a network.
        column: column of the paper's tables (arXiv 2512.13592) with a like measure, or empty; networks and
            scales differ, as docs/stable-diffusion.md lists.
    """

    measures: str
    make: Make
    differentiable: bool = True
    weights: str = ""
    column: str = ""


def pixels(similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Make:
    """Return a maker of a reward that compares pixels."""
    return lambda weights, readers, device: Part(lambda pictures: pictures.float(), similarity)


REWARDS: dict[str, Kind] = {
    "psnr": Kind("pixels, dB", pixels(measures.peak_signal_to_noise), column="PSNR"),
    "ssim": Kind("structure in small windows, at most 1", pixels(measures.structure)),
    # Not a cosine: the features are positive, so pictures of different scenes have a cosine of 0.8, poor
    # previews 0.98 and good ones 0.999. In dB these are 0, 10 and 25, comparable with dB of PSNR.
    "reader": Kind(
        "features of the embedded model's scene reader, dB of their variance",
        scene_reader(reader_features, measures.signal_to_noise),
        weights="reward",
    ),
    "labels": Kind(
        "share of the scene's attributes with the same value according to the reader, 0 … 1",
        scene_reader(scene_labels, measures.agreement),
        differentiable=False,
        weights="reward",
    ),
    "clip": Kind(
        "meaning: cosine of CLIP's image embeddings",
        pretrained("CLIPModel", image_embedding, measures.cosine),
        weights="openai/clip-vit-base-patch32",
        column="CLIP",
    ),
    "dino": Kind(
        "objects and parts: cosine of DINOv2's class tokens",
        pretrained("Dinov2Model", pooled, measures.cosine),
        weights="facebook/dinov2-base",
        column="DINO",
    ),
    # Relative to the range of depths, as in PSNR, it would be about 11 dB more.
    "depth": Kind(
        "geometry: Depth-Anything's depths, dB of the target's variance",
        pretrained("DepthAnythingForDepthEstimation", depth, measures.signal_to_noise),
        weights="depth-anything/Depth-Anything-V2-Small-hf",
        column="Depth",
    ),
    "segmentation": Kind(
        "layout: share of positions with the same SegFormer class, 0 … 1",
        pretrained("SegformerForSemanticSegmentation", classes, measures.agreement),
        differentiable=False,
        weights="nvidia/segformer-b0-finetuned-ade-512-512",
        column="Seg",
    ),
    "inception": Kind(
        "content: cosine of Inception-v3's pooled features",
        pretrained("TimmWrapperModel", pooled, measures.cosine, package="timm"),
        weights="timm/inception_v3.tv_in1k",
        column="Incep",
    ),
    "lpips": Kind(
        "perceived difference: LPIPS with AlexNet, negative, at most 0",
        lpips.make_lpips,
        weights=lpips.ALEXNET,
    ),
}


@dataclass(frozen=True)
class Term:
    """One term of a weighted sum: factor · reward `name`; empty `weights` are the table's."""

    factor: float
    name: str
    weights: str = ""


TERM = re.compile(r"(?P<sign>[+-]?)\s*(?:(?P<factor>[^*:]+)\*\s*)?(?P<name>[^*:\s]+)(?::(?P<weights>.+))?")


def parse(spec: str) -> list[Term]:
    """Parse a reward such as `psnr`, `clip:FOLDER or hub/repository` or `psnr + 20*reader - 0.5*lpips`.

    A term is [NUMBER*]NAME[:WEIGHTS]. A sign between terms needs a space on either side, because WEIGHTS may
    contain signs.

    Raises:
        RewardError: a malformed term or an unknown name.
    """
    first, *rest = re.split(r"\s([+-])\s", spec.strip())
    signed = [("+", first), *zip(rest[::2], rest[1::2], strict=True)]
    return [_term(sign, text.strip()) for sign, text in signed]


def _term(sign: str, text: str) -> Term:
    match = TERM.fullmatch(text)
    try:
        factor = float(match["factor"] or 1) if match else math.nan
    except ValueError:
        factor = math.nan
    if match is None or not math.isfinite(factor):
        raise RewardError(
            f"Cannot read {text!r} as a term of a reward. Write NAME, NAME:WEIGHTS or NUMBER*NAME, and "
            f"between terms + or - with spaces around it. Names: {', '.join(REWARDS)}."
        )
    if match["name"] not in REWARDS:
        raise RewardError(f"There is no reward {match['name']!r}. Choose from {', '.join(REWARDS)}.")
    minus = (sign == "-") != (match["sign"] == "-")
    return Term(-factor if minus else factor, match["name"], (match["weights"] or "").strip())


def make_reward(spec: str, *, readers: Path | None = None, device: str | torch.device = "cpu") -> Reward:
    """Make a reward from its text; see `parse` for the syntax and `REWARDS` for the names.

    Args:
        spec: a reward or a weighted sum of rewards.
        readers: folder that contains the scene reader `reward`, for `reader` and `labels`.
        device: of the networks and of the pictures passed to the reward.

    Raises:
        RewardError: malformed text, an unknown name, or a missing package or network.
    """
    terms = parse(spec)
    parts = []
    for term in terms:
        kind = REWARDS[term.name]
        if term.weights and not kind.weights:
            raise RewardError(f"The reward {term.name} has no network: remove “:{term.weights}”.")
        parts.append(kind.make(term.weights or kind.weights, readers, torch.device(device)))
    features, similarity = combine(parts, [term.factor for term in terms])
    differentiable = all(REWARDS[term.name].differentiable for term in terms)
    return Reward(" ".join(spec.split()), differentiable, features, similarity)

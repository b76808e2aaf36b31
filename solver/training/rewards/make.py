"""Which rewards there are, and how one is made from a line of text."""

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
        measures: what it measures, and in which unit.
        make: how it is made.
        differentiable: whether a gradient reaches the pictures.
        weights: where its network is unless another is named: a repository of the hub, a folder within that
            of the scene readers, an address; empty for a reward without a network.
        column: the column of the paper's tables (arXiv 2512.13592) that measures the same, if there is one.
    """

    measures: str
    make: Make
    differentiable: bool = True
    weights: str = ""
    column: str = ""


def pixels(similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Make:
    """A reward that compares the pictures themselves."""
    return lambda weights, readers, device: Part(lambda pictures: pictures.float(), similarity)


REWARDS: dict[str, Kind] = {
    "psnr": Kind("pixels, dB", pixels(measures.peak_signal_to_noise), column="PSNR"),
    "ssim": Kind("structure in small windows, at most 1", pixels(measures.structure)),
    # No cosine: features are positive, so that even pictures of different scenes have one of 0.8, poor
    # previews of 0.98 and good ones of 0.999. In dB these are 0, 10 and 25, and weigh as much as dB of PSNR.
    "reader": Kind(
        "what the embedded model's scene reader sees, dB of its features' variance",
        scene_reader(reader_features, measures.signal_to_noise),
        weights="reward",
    ),
    "labels": Kind(
        "share of the scene's attributes that the reader reads alike, 0 … 1",
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
    # On the scale of PSNR between the highest and the lowest depth it would be some 11 dB more.
    "depth": Kind(
        "geometry: Depth-Anything's depths, dB of the target's variance",
        pretrained("DepthAnythingForDepthEstimation", depth, measures.signal_to_noise),
        weights="depth-anything/Depth-Anything-V2-Small-hf",
        column="Depth",
    ),
    "segmentation": Kind(
        "layout: share of places where SegFormer sees the same class, 0 … 1",
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
    """One term of a weighted sum: factor · reward `name`, with weights of its own or (empty) the table's."""

    factor: float
    name: str
    weights: str = ""


TERM = re.compile(r"(?P<sign>[+-]?)\s*(?:(?P<factor>[^*:]+)\*\s*)?(?P<name>[^*:\s]+)(?::(?P<weights>.+))?")


def parse(spec: str) -> list[Term]:
    """The terms of a reward: `psnr`, `clip:FOLDER or hub/repository`, `psnr + 20*reader - 0.5*lpips`.

    A term is [NUMBER*]NAME[:WEIGHTS]. A sign between terms stands between spaces, as names of weights hold
    signs too.

    Raises:
        RewardError: a term that is none, or of no known name; names it and says what there is.
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
            f"{text!r} is no term of a reward. Write NAME, NAME:WEIGHTS or NUMBER*NAME, and between terms a "
            f"+ or - with a space on either side; names are {', '.join(REWARDS)}."
        )
    if match["name"] not in REWARDS:
        raise RewardError(f"There is no reward {match['name']!r}; there are {', '.join(REWARDS)}.")
    minus = (sign == "-") != (match["sign"] == "-")
    return Term(-factor if minus else factor, match["name"], (match["weights"] or "").strip())


def make_reward(spec: str, *, readers: Path | None = None, device: str | torch.device = "cpu") -> Reward:
    """The reward that a line of text names; see `parse` for the text and `REWARDS` for the names.

    Args:
        spec: one reward or a weighted sum of several.
        readers: the folder that holds the scene reader `reward`, for `reader` and `labels`.
        device: where networks run, and where pictures are to be given.

    Raises:
        RewardError: text that names no reward, or a package or weights that are missing; says what to do.
    """
    terms = parse(spec)
    parts = []
    for term in terms:
        kind = REWARDS[term.name]
        if term.weights and not kind.weights:
            raise RewardError(f"{term.name} has no network, so it takes no weights ({term.weights!r}).")
        parts.append(kind.make(term.weights or kind.weights, readers, torch.device(device)))
    features, similarity = combine(parts, [term.factor for term in terms])
    differentiable = all(REWARDS[term.name].differentiable for term in terms)
    return Reward(" ".join(spec.split()), differentiable, features, similarity)

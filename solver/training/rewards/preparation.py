"""Differentiable image processors: resize, crop and normalise pictures for a pretrained network, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from solver.training.rewards.reward import RewardError

FILTERS: dict[int | str, str] = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
"""Resampling filter as Pillow's number or timm's name → torch's name."""


@dataclass(frozen=True)
class Preparation:
    """Resize, crop at the centre and normalise: float pictures [B, 3, H, W] in [0, 1] → network input.

    Attributes:
        size: height and width to resize to, or the length of the shorter edge, or None to keep the size.
        resample: torch's interpolation mode, antialiased like Pillow's filters.
        crop: height and width of the central crop, no larger than `size`, or None.
        mean, std: per channel, of values in [0, 1].
        keep_aspect: scale both edges alike, by the scale to `size` that is nearer to 1.
        multiple: edges are rounded to multiples of this.
        corner: rounds half of the cropped length to the crop's first row or column.
    """

    size: tuple[int, int] | int | None
    resample: str
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    keep_aspect: bool = False
    multiple: int = 1
    corner: Callable[[float], int] = math.floor

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that pictures are resized to."""
        if self.size is None:
            return height, width
        if isinstance(self.size, int):
            short = min(height, width)
            return self.size * height // short, self.size * width // short
        scales = self.size[0] / height, self.size[1] / width
        if self.keep_aspect:
            scales = (min(scales, key=lambda scale: abs(1 - scale)),) * 2
        rows, columns = (
            round(scale * edge / self.multiple) * self.multiple
            for scale, edge in zip(scales, (height, width), strict=True)
        )
        return rows, columns

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return the network's input [B, 3, H', W']."""
        x = pictures.float()
        height, width = self.resized(*x.shape[-2:])
        # Pillow resizes along rows first, and clips to [0, 1] after each direction.
        for size in ((x.shape[-2], width), (height, width)):
            if size != x.shape[-2:]:
                x = F.interpolate(x, size, mode=self.resample, antialias=True).clamp(0, 1)
        if self.crop is not None:
            top, left = (
                self.corner((edge - kept) / 2) for edge, kept in zip((height, width), self.crop, strict=True)
            )
            x = x[..., top : top + self.crop[0], left : left + self.crop[1]]
        return (x - x.new_tensor(self.mean).view(-1, 1, 1)) / x.new_tensor(self.std).view(-1, 1, 1)


def read_preparation(processor: Any) -> Preparation:
    """Read the preparation from an image processor of transformers or its wrapper of timm's.

    Raises:
        RewardError: the processor has steps that are not implemented here, or lacks one.
    """
    config = getattr(processor, "data_config", None)
    return _of_transformers(processor) if config is None else _of_timm(config)


def _of_transformers(processor: Any) -> Preparation:
    def get(name: str) -> Any:
        return getattr(processor, name, None)

    size = dict(get("size") or {}) if get("do_resize") else {}
    crop = dict(get("crop_size") or {}) if get("do_center_crop") else {}
    known = (
        set(size) in (set(), {"shortest_edge"}, {"height", "width"})
        and set(crop) in (set(), {"height", "width"})
        and max(crop.values(), default=0) <= min(size.values(), default=math.inf)
        and get("do_rescale")
        and math.isclose(get("rescale_factor"), 1 / 255)
        and not get("do_pad")
    )
    if not known:
        raise RewardError(f"This image processor is not supported; choose other weights: {processor}")
    edges = size.get("shortest_edge") or (size["height"], size["width"]) if size else None
    return Preparation(
        size=edges,
        resample=_filter(get("resample")) if size else "",
        crop=(crop["height"], crop["width"]) if crop else None,
        mean=tuple(get("image_mean")) if get("do_normalize") else (0.0,),
        std=tuple(get("image_std")) if get("do_normalize") else (1.0,),
        keep_aspect=bool(get("keep_aspect_ratio")),
        multiple=get("ensure_multiple_of") or 1,
    )


def _of_timm(config: dict[str, Any]) -> Preparation:
    # timm resizes the shorter edge to the network's size / crop_pct, then crops.
    _, height, width = config["input_size"]
    if config.get("crop_mode", "center") != "center" or height != width:
        raise RewardError(f"This timm model's preparation is not supported; choose other weights: {config}")
    return Preparation(
        size=math.floor(height / config["crop_pct"]),
        resample=_filter(config["interpolation"]),
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        corner=round,
    )


def _filter(name: int | str) -> str:
    if name not in FILTERS:
        raise RewardError(
            f"The resampling filter {name!r} is not supported; choose weights with bilinear or bicubic."
        )
    return FILTERS[name]

"""Scene readers: small classifiers that say which scene a picture shows, attribute by attribute.

There are two, differently built and trained apart, so that one may serve as a training reward while the other
only ever judges. Both see the whole picture at 128 × 128 and know their attributes from their own config.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from solver.readers import register_reader

INPUT_SIZE = 128


def prepare(pixels: Tensor) -> Tensor:
    """Pictures (b, 3, h, w) in -1..1 of any size, averaged down (or up) to 128 × 128."""
    if pixels.shape[-2:] == (INPUT_SIZE, INPUT_SIZE):
        return pixels
    return nn.functional.interpolate(pixels, (INPUT_SIZE, INPUT_SIZE), mode="area")


class _SceneReader(ModelMixin, ConfigMixin):
    """What both readers share: from features to the values of attributes.

    `attributes` in the config is a list of (name, values), in the order of the heads; a mapping would come
    back sorted by its keys.
    """

    heads: nn.ModuleList

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) in -1..1 to (b, attributes, width)."""

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(b, 3, h, w) in -1..1 to one (b, values) of logits per attribute, in the order of the config."""
        features = self.features(pixels)
        return [head(features[:, i]) for i, head in enumerate(self.heads)]

    @torch.inference_mode()
    def read(self, pixels: Tensor) -> list[dict[str, str]]:
        """The most likely value of every attribute, for each picture."""
        choices = torch.stack([logits.argmax(1) for logits in self(pixels)], dim=1).tolist()
        attributes = self.config.attributes
        return [
            {name: values[i] for (name, values), i in zip(attributes, row, strict=True)} for row in choices
        ]


def _conv(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(channels, channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x + self.norm(self.body(x)))


class ConvSceneReader(_SceneReader):
    """A residual convolutional network; every attribute reads the mean and the maximum over the picture."""

    @register_to_config
    def __init__(
        self, attributes: list[tuple[str, list[str]]], widths: tuple[int, int, int] = (96, 160, 224)
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.body = nn.Sequential(
            nn.PixelUnshuffle(4), _conv(48, a), _Residual(a), _Residual(a),
            _conv(a, b, 2), _Residual(b), _Residual(b),
            _conv(b, c, 2), _Residual(c),
        )  # fmt: skip
        self.heads = nn.ModuleList(nn.Linear(2 * c, len(values)) for _, values in attributes)

    def features(self, pixels: Tensor) -> Tensor:
        grid = self.body(prepare(pixels))
        pooled = torch.cat([grid.mean((2, 3)), grid.amax((2, 3))], dim=1)
        return pooled[:, None].expand(-1, len(self.heads), -1)


class _Mixing(nn.Module):
    """A large depthwise kernel, then a channel MLP with GELU (as in ConvNeXt, Liu et al. 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, 3 * channels, 1), nn.GELU(), nn.Conv2d(3 * channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(self.spread(x)))


class AttentionSceneReader(_SceneReader):
    """Depthwise mixing of patches; every attribute looks where it wants through a query of its own."""

    @register_to_config
    def __init__(self, attributes: list[tuple[str, list[str]]], width: int = 192, layers: int = 5) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(3, 64, 4, 4), nn.GroupNorm(1, 64), _Mixing(64), _Mixing(64), nn.Conv2d(64, width, 2, 2)
        )
        self.body = nn.Sequential(*(_Mixing(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.position = nn.Parameter(torch.zeros(1, (INPUT_SIZE // 8) ** 2, width))
        self.queries = nn.Parameter(torch.randn(len(attributes), width) / width**0.5)
        self.to_key, self.to_value = nn.Linear(width, width), nn.Linear(width, width)
        self.heads = nn.ModuleList(nn.Linear(width, len(values)) for _, values in attributes)

    def features(self, pixels: Tensor) -> Tensor:
        grid = self.body(self.patches(prepare(pixels)))
        tokens = self.norm(grid.flatten(2).transpose(1, 2)) + self.position
        attention = (self.queries @ self.to_key(tokens).transpose(1, 2)).softmax(-1)
        return attention @ self.to_value(tokens)


READERS: dict[str, type[_SceneReader]] = {"reward": ConvSceneReader, "judge": AttentionSceneReader}
"""Folder under `checkpoints/landscapes/readers` -> its class. The judge is never trained towards."""

for _role, _class in READERS.items():
    register_reader(_role, _class)

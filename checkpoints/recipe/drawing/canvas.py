"""A canvas in picture units (256 × 256), drawn at twice that size and averaged down for smooth edges."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

SIZE = 256
SUPERSAMPLING = 2
LAYOUT_SIZE = 32
KINDS = (
    "sky", "light", "stars", "clouds", "feature", "terrain", "ground", "water", "path", "vegetation",
    "building", "boat", "birds", "flowers",
)  # fmt: skip
"""What a cell of the layout map can show."""

Colour = np.ndarray
"""Three floats, red green blue, in 0..255."""
Points = Sequence[tuple[float, float]] | Sequence[np.ndarray] | np.ndarray


def rgb(code: str) -> Colour:
    """A colour from six hexadecimal digits."""
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], dtype=float)


def mix(a: Colour, b: Colour, amount: float) -> Colour:
    """`a` where amount is 0, `b` where it is 1."""
    return a + (b - a) * amount


@cache
def _radial_falloff() -> Image.Image:
    """A 128 × 128 mask that falls off smoothly from 255 in the middle to 0 at the inscribed circle."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    inside = np.clip(1 - np.hypot(x, y), 0, 1)
    return Image.fromarray((255 * inside**2).astype(np.uint8))


class Canvas:
    """Shapes go on in order, each covering or tinting what is beneath it.

    Attributes:
        image: the picture so far, at twice its size.
        kind: one of `KINDS`: what the shapes drawn from now on belong to, for the layout map.
    """

    def __init__(self) -> None:
        side = SIZE * SUPERSAMPLING
        self.image = Image.new("RGB", (side, side))
        self._draw = ImageDraw.Draw(self.image, "RGBA")
        self.kind = "sky"
        self._layout = Image.new("L", (LAYOUT_SIZE, LAYOUT_SIZE))
        self._draw_layout = ImageDraw.Draw(self._layout)

    def _mark(self, points: Points, alpha: float) -> None:
        """Note in the layout map what the polygon shows, unless it is but a tint."""
        if alpha >= 0.5:
            cells = (np.asarray(points, dtype=float) * (LAYOUT_SIZE / SIZE) - 0.5).ravel().tolist()
            self._draw_layout.polygon(cells, fill=KINDS.index(self.kind))

    @staticmethod
    def _ink(colour: Colour, alpha: float) -> tuple[int, int, int, int]:
        r, g, b = (int(c) for c in np.clip(colour, 0, 255))
        return r, g, b, int(255 * alpha)

    def polygon(self, points: Points, colour: Colour, alpha: float = 1.0) -> None:
        scaled = (np.asarray(points, dtype=float) * SUPERSAMPLING).ravel().tolist()
        self._draw.polygon(scaled, fill=self._ink(colour, alpha))
        self._mark(points, alpha)

    def line(self, points: Points, colour: Colour, width: float, alpha: float = 1.0) -> None:
        scaled = (np.asarray(points, dtype=float) * SUPERSAMPLING).ravel().tolist()
        ink = self._ink(colour, alpha)
        self._draw.line(scaled, fill=ink, width=max(1, round(width * SUPERSAMPLING)), joint="curve")

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, alpha: float = 1.0) -> None:
        s = SUPERSAMPLING
        box = ((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s)
        self._draw.ellipse(box, fill=self._ink(colour, alpha))
        if alpha >= 0.5:
            cells = (np.array([x - rx, y - ry, x + rx, y + ry]) * (LAYOUT_SIZE / SIZE) - 0.5).tolist()
            self._draw_layout.ellipse(cells, fill=KINDS.index(self.kind))

    def disc(self, x: float, y: float, r: float, colour: Colour, alpha: float = 1.0) -> None:
        self.ellipse(x, y, r, r, colour, alpha)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, alpha: float = 1.0) -> None:
        s = SUPERSAMPLING
        self._draw.rectangle((x0 * s, y0 * s, x1 * s, y1 * s), fill=self._ink(colour, alpha))
        self._mark([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], alpha)

    def arc(self, x: float, y: float, r: float, colour: Colour, width: float, alpha: float) -> None:
        """The upper half of a circle."""
        s = SUPERSAMPLING
        box = ((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s)
        self._draw.arc(box, 180, 360, fill=self._ink(colour, alpha), width=round(width * s))
        cells = (np.array([x - r, y - r, x + r, y + r]) * (LAYOUT_SIZE / SIZE) - 0.5).tolist()
        self._draw_layout.arc(cells, 180, 360, fill=KINDS.index(self.kind))

    def glow(self, x: float, y: float, r: float, colour: Colour, strength: float) -> None:
        """Soft round light, fading to nothing at distance r."""
        side = round(2 * r * SUPERSAMPLING)
        mask = _radial_falloff().resize((side, side), Image.Resampling.BILINEAR)
        mask = mask.point(lambda v: v * strength)
        corner = (round((x - r) * SUPERSAMPLING), round((y - r) * SUPERSAMPLING))
        self.image.paste(self._ink(colour, 1)[:3], corner, mask)

    def gradient(
        self, top: float, bottom: float, stops: Sequence[Colour], where: Points | None = None
    ) -> None:
        """Evenly spaced colours from y = top to y = bottom, full width or only inside the polygon `where`."""
        s, side = SUPERSAMPLING, self.image.width
        y0, y1 = max(0, round(top * s)), min(side, round(bottom * s))
        if y1 <= y0:
            return
        at = (np.arange(y0, y1) / s - top) / (bottom - top) * (len(stops) - 1)
        column = np.stack([np.interp(at, np.arange(len(stops)), [c[i] for c in stops]) for i in range(3)], -1)
        strip = Image.fromarray(np.clip(column, 0, 255).astype(np.uint8)[:, None, :]).resize((side, y1 - y0))
        if where is None:
            self.image.paste(strip, (0, y0))
            return
        mask = Image.new("L", strip.size)
        shifted = np.asarray(where, dtype=float) * s - (0, y0)
        ImageDraw.Draw(mask).polygon(shifted.ravel().tolist(), fill=255)
        self.image.paste(strip, (0, y0), mask)
        self._mark(where, 1.0)

    def veil(self, alpha: np.ndarray, colour: Colour) -> None:
        """Tint the whole canvas; `alpha` (h, w) in 0..1 is stretched smoothly over it."""
        mask = Image.fromarray((255 * np.clip(alpha, 0, 1)).astype(np.uint8))
        mask = mask.resize(self.image.size, Image.Resampling.BICUBIC)
        self.image.paste(self._ink(colour, 1)[:3], (0, 0), mask)

    def finish(self) -> np.ndarray:
        """The picture, (256, 256, 3) uint8."""
        return np.asarray(self.image.reduce(SUPERSAMPLING))

    def layout(self) -> np.ndarray:
        """What is where: (32, 32) uint8, indices of `KINDS`."""
        return np.asarray(self._layout)

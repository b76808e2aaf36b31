"""Everything above the horizon: sky, sun and moon, stars, clouds, and what happens up there."""

from __future__ import annotations

import numpy as np

from checkpoints.recipe.drawing.canvas import SIZE, mix, rgb
from checkpoints.recipe.drawing.painting import Painting

STAR_FIELD = 32
LIGHT = 28.0
"""Largest radius of sun and moon."""
BALLOON = 27.0
"""Largest radius of a balloon."""


def draw_sky(p: Painting, horizon: float) -> None:
    p.canvas.gradient(0, horizon, p.mood.sky)


def star_grid(rng: np.random.Generator, horizon: float) -> list[tuple[float, float]]:
    """Places for stars in every other field of a loose checkerboard, so that no two run into each other."""
    rows = int(0.75 * horizon // STAR_FIELD)
    fields = [(c, r) for r in range(rows) for c in range(r % 2, SIZE // STAR_FIELD, 2)]
    return [
        (STAR_FIELD * (c + rng.uniform(0.3, 0.7)), STAR_FIELD * (r + rng.uniform(0.3, 0.7)))
        for c, r in fields
    ]


def draw_stars(p: Painting, spots: list[tuple[float, float]]) -> None:
    for x, y in spots:
        r = p.rng.uniform(2.6, 3.6)
        p.canvas.disc(x, y, 2.4 * r, rgb("9fb4ff"), 0.16)
        p.canvas.disc(x, y, r, rgb("fff8e0"))


def draw_light(p: Painting, x: float, y: float, scale: float) -> None:
    """Sun or moon."""
    r = scale * p.rng.uniform(22, LIGHT)
    if p.scene.light == "sun":
        disc, glow = {
            "dawn": (rgb("fff3cf"), rgb("fff0d2")),
            "day": (rgb("fff6c8"), rgb("fffbe4")),
            "sunset": (rgb("fff0b8"), rgb("ffd27a")),
        }[p.scene.time]
        p.canvas.glow(x, y, 4.2 * r, glow, 0.75)
        p.canvas.disc(x, y, r, disc)
        return
    p.canvas.glow(x, y, 3.0 * r, rgb("b9c8ff"), 0.5)
    if p.scene.light == "moon":
        p.canvas.disc(x, y, r, rgb("f7f2dc"))
        for dx, dy, size in ((-0.35, -0.2, 0.24), (0.3, 0.15, 0.18), (-0.05, 0.45, 0.15)):
            p.canvas.disc(x + dx * r, y + dy * r, size * r, rgb("dfd9c4"))
        return
    # A crescent is the disc minus a flatter half of it, drawn as the polygon between their arcs.
    outer = np.linspace(-np.pi / 2, np.pi / 2, 40)
    shape = [(x + r * np.cos(a), y + 1.1 * r * np.sin(a)) for a in outer]
    shape += [(x + 0.3 * r * np.cos(a), y + 1.1 * r * np.sin(a)) for a in outer[::-1]]
    p.canvas.polygon([(px - 0.5 * r, py) for px, py in shape], rgb("fbf3d0"))


def _puff(p: Painting, x: float, y: float, w: float, top: np.ndarray, under: np.ndarray) -> None:
    """One cloud of width w with its flat base at y."""
    lobes = [
        (x + w * t, w * p.rng.uniform(0.16, 0.24) * (1 - 1.1 * t * t)) for t in np.linspace(-0.36, 0.36, 5)
    ]
    for colour, lift in ((under, 0.0), (top, 0.05 * w)):
        for cx, r in lobes:
            p.canvas.disc(cx, y - r * 0.8 - lift, r, colour)
        p.canvas.ellipse(x, y - 0.07 * w - lift, 0.52 * w, 0.08 * w, colour)


def draw_clouds(p: Painting, spots: list[tuple[float, float, float]]) -> None:
    """Clouds of (x, y, width), or the overcast."""
    if p.scene.clouds == "clear":
        return
    bright = mix(p.mood.sky[2], rgb("ffffff"), 0.25 if p.mood.dark else 0.7)
    if p.scene.clouds == "scattered":
        top, under = (
            mix(p.mood.sky[1], bright, 0.55 if p.mood.dark else 0.9),
            mix(p.mood.sky[1], bright, 0.35 if p.mood.dark else 0.6),
        )
        for x, y, w in spots:
            _puff(p, x, y, w, top, under)
        return
    # Overcast: heavy rolls of cloud, the lowest the lightest.
    for depth, y in enumerate((8, 24, 40)):
        colour = mix(mix(p.mood.sky[0], rgb("6c7484"), 0.45), bright, 0.12 + 0.16 * depth) * (
            0.8 if p.mood.dark else 1
        )
        x = -20 + p.rng.uniform(-12, 12)
        if depth == 0:
            p.canvas.box(0, y - 30, SIZE, y, colour)
        rolls = []
        while x < SIZE + 20:
            w = p.rng.uniform(44, 70)
            rolls.append((x, y + p.rng.uniform(-4, 5), w))
            x += 0.62 * w
        for cx, cy, w in rolls if depth == 0 else rolls[:: int(p.rng.integers(1, 3))]:
            p.canvas.ellipse(cx, cy, 0.5 * w, 0.24 * w, colour)


def draw_rainbow(p: Painting, horizon: float, x: float, r: float) -> None:
    for i, code in enumerate(("e8574c", "f3a14a", "f7e05d", "77c76b", "5aa7e6", "8d6cc9")):
        p.canvas.arc(x, horizon + 6, r - 4.2 * i, rgb(code), 4.4, 0.62)


def draw_aurora(p: Painting, horizon: float) -> None:
    """Two hanging curtains: bright along a wavy lower edge, fading upward."""
    y, x = np.mgrid[0:SIZE:4, 0:SIZE:4].astype(float)
    for code, base in (("4fe3a0", 0.62), ("7a6ff0", 0.44)):
        phase, bend = p.rng.uniform(0, 2 * np.pi, 2)
        edge = base * horizon + 13 * np.sin(x / 38 + phase) + 6 * np.sin(x / 17 + bend)
        above = np.maximum(edge - y, 0) / p.rng.uniform(30, 40)
        folds = 0.78 + 0.22 * np.sin(x / 9 + 2 * phase)
        alpha = np.where(y < edge, np.exp(-above), np.exp(-((y - edge) ** 2) / 14)) * folds
        p.canvas.veil(0.72 * alpha * (y < horizon), rgb(code))


def draw_meteor(p: Painting, x: float, y: float, scale: float) -> None:
    """A falling star, its middle at (x, y)."""
    length, turn = scale * p.rng.uniform(54, 62), p.rng.choice((-1, 1))
    x, y = x + turn * 0.44 * length, y + 0.21 * length
    tail = (x - turn * 0.88 * length, y - 0.42 * length)
    for width, alpha in ((11.0, 0.25), (6.0, 0.9)):
        p.canvas.polygon([tail, (x, y - width / 2), (x, y + width / 2)], rgb("eef2ff"), alpha)
    p.canvas.disc(x, y, 9.5, rgb("dfe6ff"), 0.35)
    p.canvas.disc(x, y, 6, rgb("ffffff"))


def draw_lightning(p: Painting, x: float, top: float, height: float) -> None:
    """One bolt out of the clouds, leaning either way."""
    turn = p.rng.choice((-1, 1))
    bolt = [
        (x + turn * across, top + share * height)
        for across, share in ((12, 0), (-14, 0.55), (0, 0.55), (-10, 1), (20, 0.4), (6, 0.4), (26, 0))
    ]
    p.canvas.glow(x, top + 0.5 * height, 66, rgb("e9e4ff"), 0.55)
    p.canvas.polygon(bolt, rgb("fff6c2"))


def draw_balloon(p: Painting, x: float, y: float, scale: float) -> None:
    r = scale * p.rng.uniform(24, BALLOON)
    first, second = (("e8504a", "fbe3b4"), ("f2a33c", "fff1cf"), ("3f7fc4", "f6e7c2"), ("b657a8", "ffe2d0"))[
        p.rng.integers(4)
    ]
    bright = 0.5 + 0.5 * p.mood.light
    for share, code in ((1.0, first), (0.72, second), (0.42, first), (0.14, second)):
        p.canvas.ellipse(x, y, r * share, r, rgb(code) * bright)
        p.canvas.polygon(
            [
                (x - 0.88 * r * share, y + 0.5 * r),
                (x + 0.88 * r * share, y + 0.5 * r),
                (x + 3 * share, y + 1.6 * r),
                (x - 3 * share, y + 1.6 * r),
            ],
            rgb(code) * bright,
        )
    p.canvas.box(x - 5, y + 1.72 * r, x + 5, y + 1.72 * r + 8, rgb("7a4b2a") * bright)


def draw_birds(p: Painting, x0: float, y0: float, scale: float, *, stacked: bool) -> None:
    """Two or three gulls with open wings, side by side or one above the other.

    They are light on a dark sky, dark on a light one.
    """
    colour = (
        mix(p.mood.sky[1], rgb("ffffff"), 0.8) if p.mood.dark else mix(p.mood.sky[1], rgb("20222c"), 0.85)
    )
    t = np.linspace(-1, 1, 25)
    spots = ((-25, 5), (25, -5)) if p.rng.random() < 0.6 else ((-34, 8), (0, -10), (34, 8))
    if stacked:
        spots = ((-7, 15), (7, -15))
    for dx, dy in spots:
        x, y = x0 + scale * dx, y0 + scale * dy + p.rng.uniform(-2, 2)
        span = scale * (p.rng.uniform(21, 23) if len(spots) == 2 else p.rng.uniform(15, 16))
        upper = -0.52 * span * np.sin(np.pi * np.minimum(np.abs(t) ** 0.8, 1)) + 0.18 * span * np.abs(t)
        thick = 0.06 * span + 0.3 * span * (1 - np.abs(t)) ** 0.8  # broad at the body, narrow at the tips
        wings = np.concatenate(
            [np.stack([x + span * t, y + upper], -1), np.stack([x + span * t, y + upper + thick], -1)[::-1]]
        )
        p.canvas.polygon(wings, colour)

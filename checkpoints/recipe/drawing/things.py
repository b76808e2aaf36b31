"""Things that stand in the land: trees, buildings, boats, flowers. Each is drawn up from its foot (x, y)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from checkpoints.recipe.drawing.canvas import Colour, mix, rgb
from checkpoints.recipe.drawing.land import river_at
from checkpoints.recipe.drawing.painting import Painting
from checkpoints.recipe.drawing.places import Places, around

LAMP = rgb("ffd76a")
Painter = Callable[[Painting, float, float, float, float], None]
"""(painting, x, y, height, distance): one thing whose foot stands at (x, y)."""


def _two_tone(p: Painting, colour: Colour, distance: float) -> tuple[Colour, Colour]:
    return p.mood.shade(colour, distance), p.mood.shade(colour * 0.76, distance)


def _fir(p: Painting, x: float, y: float, h: float, d: float) -> None:
    lit, dim = _two_tone(p, rgb("2f7a52") * p.rng.uniform(0.88, 1.12), d)
    p.canvas.box(x - 0.05 * h, y - 0.16 * h, x + 0.05 * h, y, p.mood.shade(rgb("5d4030"), d))
    for low, top, half in ((0.1, 0.52, 0.3), (0.34, 0.76, 0.24), (0.58, 1.0, 0.17)):
        p.canvas.polygon([(x - half * h, y - low * h), (x, y - top * h), (x + half * h, y - low * h)], lit)
        p.canvas.polygon(
            [(x, y - top * h), (x + half * h, y - low * h), (x + 0.1 * half * h, y - low * h)], dim
        )
        if p.scene.ground == "snow":
            cap = top - 0.42 * (top - low)
            width = 0.42 * half * h
            p.canvas.polygon(
                [(x - width, y - cap * h), (x, y - top * h), (x + width, y - cap * h)],
                p.mood.shade(rgb("f6fafd"), d),
            )


def _crown(colours: tuple[str, ...]) -> Painter:
    def paint(p: Painting, x: float, y: float, h: float, d: float) -> None:
        autumn = p.scene.ground == "autumn" and len(colours) == 1
        choice = ("d9632f", "e39a35", "b8452f") if autumn else colours
        lit, dim = _two_tone(p, rgb(choice[p.rng.integers(len(choice))]) * p.rng.uniform(0.94, 1.06), d)
        p.canvas.polygon(
            [(x - 0.06 * h, y), (x - 0.03 * h, y - 0.5 * h), (x + 0.03 * h, y - 0.5 * h), (x + 0.06 * h, y)],
            p.mood.shade(rgb("6b4a36"), d),
        )
        for dx, dy, r in ((0.17, 0.5, 0.2), (-0.17, 0.52, 0.2), (0.0, 0.72, 0.26)):
            p.canvas.disc(x + dx * h + 0.04 * h, y - dy * h + 0.03 * h, r * h, dim)
        for dx, dy, r in ((0.14, 0.53, 0.17), (-0.19, 0.54, 0.18), (-0.03, 0.74, 0.23)):
            p.canvas.disc(x + dx * h, y - dy * h, r * h, lit)

    return paint


def _palm(p: Painting, x: float, y: float, h: float, d: float) -> None:
    lean = p.rng.uniform(-0.22, 0.22) * h
    t = np.linspace(0, 1, 8)
    trunk = np.stack([x + lean * t**1.8, y - 0.82 * h * t], -1)
    p.canvas.line(trunk, p.mood.shade(rgb("8a6242"), d), max(2.0, 0.075 * h))
    cx, cy = trunk[-1]
    for i, angle in enumerate((-2.95, -2.35, -1.85, -1.25, -0.75, -0.2)):
        green = p.mood.shade(rgb("3f9a56") * (1.0 if i % 2 else 0.78), d)
        s = np.linspace(0, 1, 7)
        length = 0.46 * h
        spine = np.stack(
            [cx + length * s * np.cos(angle), cy + length * (s * np.sin(angle) * 0.75 + 0.62 * s**2)], -1
        )
        breadth = 0.085 * h * np.sin(np.pi * np.clip(s * 0.94 + 0.06, 0, 1))
        leaf = np.concatenate(
            [spine - np.stack([0 * s, breadth], -1), (spine + np.stack([0 * s, breadth], -1))[::-1]]
        )
        p.canvas.polygon(leaf, green)


def _cactus(p: Painting, x: float, y: float, h: float, d: float) -> None:
    lit, dim = _two_tone(p, rgb("4c9a5a") * p.rng.uniform(0.9, 1.1), d)
    w = 0.085 * h

    def column(cx: float, top: float, bottom: float, half: float) -> None:
        p.canvas.disc(cx, top, half, lit)
        p.canvas.box(cx - half, top, cx + half, bottom, lit)
        p.canvas.box(cx + 0.25 * half, top, cx + half, bottom, dim)

    for side, low, rise in ((-1, p.rng.uniform(0.3, 0.45), 0.34), (1, p.rng.uniform(0.4, 0.55), 0.3)):
        arm = x + side * 0.26 * h
        p.canvas.box(
            min(arm, x), y - low * h - 0.7 * w, max(arm, x), y - low * h + 0.7 * w, dim if side > 0 else lit
        )
        column(arm, y - (low + rise) * h, y - low * h + 0.7 * w, 0.75 * w)
    column(x, y - h + w, y, 1.15 * w)


PLANTS: dict[str, tuple[Painter, float]] = {
    "firs": (_fir, 1.0),
    "leafy": (_crown(("5f9e45",)), 0.9),
    "blossom": (_crown(("f2a7c0", "f7c3d2", "e98fb2")), 0.85),
    "palms": (_palm, 1.05),
    "cacti": (_cactus, 0.75),
}
"""Vegetation -> its painter and its height relative to a fir."""


PLANT_HALF = {"firs": 0.3, "leafy": 0.37, "blossom": 0.37, "palms": 0.5, "cacti": 0.34}
"""Vegetation -> half its width, relative to its height."""


def _window(p: Painting, x: float, y: float, w: float, h: float) -> None:
    p.canvas.box(x - w, y - h, x + w, y + h, LAMP if p.mood.dark else p.mood.shade(rgb("bfe0ee")))


def _cabin(p: Painting, x: float, y: float, h: float, d: float) -> None:
    w = 0.62 * h
    wall, dim = _two_tone(p, rgb("a8683c"), d)
    roof = p.mood.shade(rgb("f4f8fb") if p.scene.ground == "snow" else rgb("7c3b30"), d)
    p.canvas.box(x + 0.3 * w, y - 1.02 * h, x + 0.52 * w, y - 0.6 * h, p.mood.shade(rgb("6d5a55"), d))
    p.canvas.box(x - w, y - 0.55 * h, x + w, y, wall)
    p.canvas.box(x + 0.35 * w, y - 0.55 * h, x + w, y, dim)
    p.canvas.polygon(
        [
            (x - 1.2 * w, y - 0.5 * h),
            (x - 0.55 * w, y - h),
            (x + 0.55 * w, y - h),
            (x + 1.2 * w, y - 0.5 * h),
        ],
        roof,
    )
    p.canvas.box(x - 0.14 * w, y - 0.36 * h, x + 0.16 * w, y, p.mood.shade(rgb("5a3524"), d))
    for side in (-0.58, 0.62):
        _window(p, x + side * w, y - 0.27 * h, 0.15 * w, 0.1 * h)


def _lighthouse(p: Painting, x: float, y: float, h: float, d: float) -> None:
    h *= 1.7

    def half(share: float) -> float:
        """The tower's half width at a share of its height."""
        return h * (0.15 - 0.055 * share)

    if p.mood.dark:
        for side in (-1, 1):
            p.canvas.polygon(
                [(x, y - 0.89 * h), (x + side * 84, y - 0.89 * h - 18), (x + side * 84, y - 0.89 * h + 14)],
                rgb("fff0b8"),
                0.22,
            )
    for i in range(5):
        low, top = 0.16 * i, 0.16 * (i + 1)
        colour = rgb("f6f1ea") if i % 2 else rgb("d6423c")
        p.canvas.polygon(
            [
                (x - half(low), y - low * h),
                (x - half(top), y - top * h),
                (x + half(top), y - top * h),
                (x + half(low), y - low * h),
            ],
            p.mood.shade(colour, d),
        )
        p.canvas.polygon(
            [
                (x + 0.3 * half(low), y - low * h),
                (x + 0.3 * half(top), y - top * h),
                (x + half(top), y - top * h),
                (x + half(low), y - low * h),
            ],
            p.mood.shade(colour * 0.74, d),
        )
    p.canvas.box(x - 0.12 * h, y - 0.83 * h, x + 0.12 * h, y - 0.79 * h, p.mood.shade(rgb("3c4048"), d))
    p.canvas.box(
        x - 0.07 * h,
        y - 0.93 * h,
        x + 0.07 * h,
        y - 0.83 * h,
        LAMP if p.mood.dark else p.mood.shade(rgb("cfe6ee"), d),
    )
    p.canvas.polygon(
        [(x - 0.1 * h, y - 0.93 * h), (x, y - 1.03 * h), (x + 0.1 * h, y - 0.93 * h)],
        p.mood.shade(rgb("b9332f"), d),
    )
    if p.mood.dark:
        p.canvas.glow(x, y - 0.88 * h, 0.34 * h, rgb("ffe9a0"), 0.8)


def _windmill(p: Painting, x: float, y: float, h: float, d: float) -> None:
    h *= 1.2
    wall, dim = _two_tone(p, rgb("dcc7a4"), d)
    p.canvas.polygon(
        [(x - 0.27 * h, y), (x - 0.16 * h, y - 0.7 * h), (x + 0.16 * h, y - 0.7 * h), (x + 0.27 * h, y)], wall
    )
    p.canvas.polygon(
        [(x + 0.08 * h, y), (x + 0.05 * h, y - 0.7 * h), (x + 0.16 * h, y - 0.7 * h), (x + 0.27 * h, y)], dim
    )
    p.canvas.polygon(
        [(x - 0.2 * h, y - 0.68 * h), (x, y - 0.92 * h), (x + 0.2 * h, y - 0.68 * h)],
        p.mood.shade(rgb("8c4a3a"), d),
    )
    p.canvas.box(x - 0.06 * h, y - 0.2 * h, x + 0.06 * h, y, p.mood.shade(rgb("6b4630"), d))
    _window(p, x, y - 0.42 * h, 0.05 * h, 0.06 * h)
    hub, turn = np.array([x, y - 0.72 * h]), np.pi / 4 + p.rng.uniform(-0.2, 0.2)
    for a in turn + np.arange(4) * np.pi / 2:
        along, across = np.array([np.cos(a), np.sin(a)]), np.array([-np.sin(a), np.cos(a)])
        reach = 0.58 * h
        sail = [
            hub + 0.12 * reach * along,
            hub + reach * along,
            hub + reach * along + 0.36 * reach * across,
            hub + 0.2 * reach * along + 0.36 * reach * across,
        ]
        p.canvas.polygon(sail, p.mood.shade(rgb("fbf8f0"), 0.5 * d), 0.94)
        p.canvas.line([hub, hub + reach * along], p.mood.shade(rgb("5c4636"), d), 3.6)
    p.canvas.disc(hub[0], hub[1], 0.05 * h, p.mood.shade(rgb("4a382c"), d))


def _castle(p: Painting, x: float, y: float, h: float, d: float) -> None:
    h *= 1.5
    wall, dim = _two_tone(p, rgb("c9c2c4"), d)
    roof, gate = p.mood.shade(rgb("4f6fae"), d), p.mood.shade(rgb("4b3a34"), d)

    def tower(cx: float, half: float, top: float) -> None:
        p.canvas.box(cx - half, y - top, cx + half, y, wall)
        p.canvas.box(cx + 0.3 * half, y - top, cx + half, y, dim)
        p.canvas.polygon(
            [(cx - 1.35 * half, y - top), (cx, y - top - 2.4 * half), (cx + 1.35 * half, y - top)], roof
        )
        _window(p, cx, y - 0.8 * top, 0.24 * half, 0.06 * h)

    p.canvas.box(x - 0.42 * h, y - 0.36 * h, x + 0.42 * h, y, dim)
    tower(x - 0.4 * h, 0.13 * h, 0.5 * h)
    tower(x + 0.4 * h, 0.13 * h, 0.5 * h)
    tower(x, 0.17 * h, 0.66 * h)
    p.canvas.ellipse(x, y - 0.2 * h, 0.09 * h, 0.09 * h, gate)
    p.canvas.box(x - 0.09 * h, y - 0.2 * h, x + 0.09 * h, y, gate)


def _tent(p: Painting, x: float, y: float, h: float, d: float) -> None:
    h *= 0.72
    lit, dim = _two_tone(p, rgb("f08a3c"), d)
    lit = mix(lit, LAMP, 0.5) if p.mood.dark else lit
    p.canvas.polygon([(x - 0.95 * h, y), (x - 0.1 * h, y - h), (x + 0.6 * h, y)], lit)
    p.canvas.polygon(
        [(x - 0.1 * h, y - h), (x + 0.5 * h, y - 0.86 * h), (x + 1.15 * h, y - 0.04 * h), (x + 0.6 * h, y)],
        dim,
    )
    p.canvas.polygon(
        [(x - 0.4 * h, y), (x - 0.1 * h, y - 0.72 * h), (x + 0.14 * h, y)], p.mood.shade(rgb("57341f"), d)
    )


BUILDINGS: dict[str, Painter] = {
    "cabin": _cabin,
    "lighthouse": _lighthouse,
    "windmill": _windmill,
    "castle": _castle,
    "tent": _tent,
}


BUILDING_REACH = {
    "cabin": (0.75, 1.05),
    "lighthouse": (0.26, 1.75),
    "windmill": (0.74, 1.6),
    "castle": (0.88, 1.62),
    "tent": (0.84, 0.74),
}
"""Building -> how far it reaches to each side and up, relative to its height."""


def draw_sailboat(p: Painting, x: float, y: float, h: float) -> None:
    sail, jib = (("fffaf0", "f0d7c0"), ("f4f7fb", "e0574c"), ("fff3d6", "5a93cf"))[p.rng.integers(3)]
    turn = p.rng.choice((-1, 1))
    lift = 0.5 + 0.5 * p.mood.light
    p.canvas.ellipse(x, y + 1, 0.6 * h, 2.2, p.mood.shade(rgb("1c3346")), 0.4)
    p.canvas.polygon(
        [(x - 0.52 * h, y - 0.2 * h), (x + 0.52 * h, y - 0.2 * h), (x + 0.36 * h, y), (x - 0.36 * h, y)],
        p.mood.shade(rgb("8a4a2c")),
    )
    p.canvas.box(x - 0.02 * h, y - 1.02 * h, x + 0.02 * h, y - 0.2 * h, p.mood.shade(rgb("50382a")))
    p.canvas.polygon(
        [
            (x + turn * 0.05 * h, y - h),
            (x + turn * 0.5 * h, y - 0.27 * h),
            (x + turn * 0.05 * h, y - 0.27 * h),
        ],
        rgb(sail) * lift,
    )
    p.canvas.polygon(
        [
            (x - turn * 0.05 * h, y - 0.9 * h),
            (x - turn * 0.38 * h, y - 0.27 * h),
            (x - turn * 0.05 * h, y - 0.27 * h),
        ],
        rgb(jib) * lift,
    )


def draw_flowers(p: Painting, top: float, places: Places, river: np.ndarray | None) -> None:
    """A meadow in flower: one or two colours, larger in front, none under a plant or in the river."""
    choice = p.rng.permutation(["f25c6e", "fbe14f", "f5f0fa", "b77be0", "ff9d4f"])[:2]
    rows = max(1, round((252 - top) / 22))
    for row in range(rows):
        for column in range(10):
            x = 26 * (column + p.rng.uniform(0.2, 0.8))
            y = top + (252 - top) * (row + p.rng.uniform(0.2, 0.8)) / rows
            r = 3.6 + 2.8 * (y - top) / (256 - top)
            left, right = river_at(river, y) if river is not None else (0.0, 0.0)
            if (
                p.rng.random() < 0.8
                and not left - r < x < right + r
                and places.gap(around(x, y, r, r, r)) > 0
            ):
                colour = rgb(choice[p.rng.integers(2)]) * (0.35 + 0.65 * p.mood.light)
                p.canvas.disc(x, y, r, colour)

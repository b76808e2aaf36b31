"""The shape of the land: what stands on the horizon, the ground in front of it, and the water in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from checkpoints.recipe.drawing.canvas import SIZE, Colour, mix, rgb
from checkpoints.recipe.drawing.painting import Painting
from checkpoints.recipe.scenes import Scene

GROUND = {"grass": rgb("6fae4e"), "autumn": rgb("c98a3c"), "snow": rgb("eef3f8"), "sand": rgb("e6c68c")}
"""The ground's own colour in full daylight."""
ROCK = rgb("77788c")
_X = np.arange(SIZE + 1, dtype=float)


@dataclass(frozen=True)
class Layer:
    """One silhouette: its upper edge at every x (257 heights) and how to paint it."""

    edge: np.ndarray
    distance: float
    peaks: tuple[tuple[float, float, float], ...] = ()
    """Summits as (x, height of the summit in y, half width), for those layers that have them."""


def _waves(rng: np.random.Generator, base: float, height: float, length: float) -> np.ndarray:
    """A smooth rolling edge, `height` above `base` at its crests."""
    a, b = rng.uniform(0, 2 * np.pi, 2)
    wave = 0.7 * np.sin(2 * np.pi * _X / length + a) + 0.3 * np.sin(2 * np.pi * _X / (0.47 * length) + b)
    return base - height * (0.5 + 0.5 * wave)


def _ridge(
    rng: np.random.Generator, base: float, low: float, high: float, count: int, distance: float
) -> Layer:
    """Straight-flanked summits, spread over the width, each slightly broken."""
    edge = np.full(SIZE + 1, base - 0.25 * low)
    peaks = []
    for x in (np.arange(count) + rng.uniform(0.2, 0.8, count)) * SIZE / count:
        height = rng.uniform(low, high)
        half = height * rng.uniform(0.95, 1.3)
        knots = [-half, -0.55 * half, -0.2 * half, 0, 0.25 * half, 0.6 * half, half]
        rise = np.array([0, 0.42, 0.84, 1, 0.76, 0.38, 0]) + np.append(
            np.append(0, rng.uniform(-0.05, 0.05, 5)), 0
        )
        rise[3] = 1
        edge = np.minimum(edge, base - height * np.interp(_X - x, knots, rise))
        peaks.append((float(x), float(base - height), float(half)))
    return Layer(edge, distance, tuple(peaks))


def skyline_layers(scene: Scene, rng: np.random.Generator, horizon: float, side: float) -> list[Layer]:
    """The far terrain from back to front; a volcano keeps away from `side` (-1 left, 1 right)."""
    h = horizon + 1
    match scene.terrain:
        case "mountains":
            return [_ridge(rng, h, 34, 50, 4, 0.8), _ridge(rng, h, 42, 68, int(rng.integers(2, 4)), 0.42)]
        case "volcano":
            height, x = rng.uniform(60, 72), SIZE / 2 - side * rng.uniform(30, 58)
            mouth, half = 13.0, height * rng.uniform(1.15, 1.35)
            away = np.maximum(np.abs(_X - x) - mouth, 0) / (half - mouth)
            cone = h - height * np.clip(1 - away, 0, 1) ** 1.45
            return [Layer(_waves(rng, h, 18, 170), 0.8), Layer(cone, 0.4, ((x, h - height, half),))]
        case "mesa":
            layers = []
            for distance, low, high in ((0.75, 26, 38), (0.35, 42, 58)):
                edge = np.full(SIZE + 1, h)
                peaks = []
                for x in rng.permutation([44.0, 128.0, 212.0])[:2] + rng.uniform(-18, 18, 2):
                    height, flat = rng.uniform(low, high), rng.uniform(20, 34)
                    away = np.abs(_X - x)
                    profile = np.interp(away, [flat, flat + 3, flat + 6, flat + 26], [1, 0.58, 0.45, 0])
                    edge = np.minimum(edge, h - height * profile)
                    peaks.append((float(x), float(h - height), float(flat)))
                layers.append(Layer(edge, distance, tuple(peaks)))
            return layers
        case "hills":
            return [
                Layer(_waves(rng, h, 52, rng.uniform(130, 190)), 0.78),
                Layer(_waves(rng, h, 38, rng.uniform(110, 160)), 0.52),
                Layer(_waves(rng, h, 22, rng.uniform(120, 170)), 0.3),
            ]
        case "dunes":
            return [_dune(rng, h, 46, 0.7), _dune(rng, h, 32, 0.4)]
        case _:
            return [Layer(_waves(rng, h, 5, 220) - 2, 0.75)]


def _dune(rng: np.random.Generator, base: float, height: float, distance: float) -> Layer:
    """Crests with a long windward rise and a short lee fall."""
    edge = np.full(SIZE + 1, base - 2.0)
    peaks = []
    for x in (np.arange(3) + rng.uniform(0.15, 0.85, 3)) * SIZE / 3:
        top = height * rng.uniform(0.65, 1)
        t = (_X - x) / np.where(x > _X, 88, 52)
        edge = np.minimum(edge, base - top * np.clip(1 - np.abs(t), 0, 1) ** 1.35)
        peaks.append((float(x), float(base - top), 52.0))
    return Layer(edge, distance, tuple(peaks))


def _below(edge: np.ndarray, bottom: float) -> np.ndarray:
    """The polygon between an upper edge and a level line."""
    return np.concatenate([np.stack([_X, edge], -1), [(SIZE, bottom), (0, bottom)]])


def terrain_colour(scene: Scene) -> Colour:
    if scene.terrain == "mountains":
        return ROCK if scene.ground != "autumn" else mix(ROCK, rgb("8a6a58"), 0.5)
    if scene.terrain == "volcano":
        return rgb("6a5560")
    if scene.terrain == "mesa":
        return rgb("c9683f")
    return GROUND[scene.ground] * (0.92 if scene.ground != "snow" else 0.97)


def draw_skyline(p: Painting, layers: list[Layer], horizon: float) -> None:
    own = terrain_colour(p.scene)
    for layer in layers:
        lit = p.mood.shade(own, layer.distance)
        shadow = p.mood.shade(own * 0.74, layer.distance * 0.92)
        p.canvas.gradient(
            layer.edge.min(), horizon + 2, (lit, mix(lit, p.mood.haze, 0.35)), _below(layer.edge, horizon + 2)
        )
        for x, y, half in layer.peaks:
            if p.scene.terrain == "mountains":
                _mountain_relief(p, layer, (x, y, half), shadow, horizon)
            elif p.scene.terrain == "volcano":
                _volcano_relief(p, layer, (x, y, half), shadow, horizon)
            elif p.scene.terrain == "mesa":
                for depth in (0.2, 0.36):
                    level = y + depth * (horizon - y)
                    p.canvas.box(x - half, level, x + half, level + 3, shadow, 0.75)
                p.canvas.polygon(
                    [
                        (x + 0.35 * half, y),
                        (x + half, y),
                        (x + half + 4, y + 0.45 * (horizon - y)),
                        (x + 0.35 * half, y + 0.45 * (horizon - y)),
                    ],
                    shadow,
                    0.6,
                )
            elif p.scene.terrain == "dunes":
                foot = min(x + half, SIZE)
                lee = (
                    [(x, y)]
                    + [(t, layer.edge[int(t)]) for t in np.linspace(x, foot, 8) if 0 <= t <= SIZE]
                    + [(x + 0.2 * half, horizon + 2)]
                )
                p.canvas.polygon(lee, shadow, 0.8)


def _mountain_relief(
    p: Painting, layer: Layer, peak: tuple[float, float, float], shadow: Colour, horizon: float
) -> None:
    """The far flank in shadow and, in winter, a cap of snow with a zigzag hem."""
    x, y, half = peak
    right = [(t, layer.edge[int(t)]) for t in np.linspace(x, min(x + half, SIZE), 10) if 0 <= t <= SIZE]
    if len(right) < 2 or layer.edge[int(np.clip(x, 0, SIZE))] < y - 1:
        return
    p.canvas.polygon(
        [(x, y), *right, (x + 0.35 * half, horizon + 2), (x + 0.1 * half, y + 0.5 * (horizon - y))],
        shadow,
        0.85,
    )
    if p.scene.ground != "snow":
        return
    hem = y + 0.46 * (horizon - y)
    side = [
        (t, layer.edge[int(t)])
        for t in range(max(0, int(x - half)), min(SIZE, int(x + half)))
        if layer.edge[t] < hem
    ]
    if len(side) < 4:
        return
    left, width = side[0][0], side[-1][0] - side[0][0]
    zigzag = [
        (left + width * f, hem - d * (hem - y))
        for f, d in ((1, 0), (0.8, 0.34), (0.66, 0.02), (0.5, 0.36), (0.34, 0), (0.18, 0.3))
    ]
    snow = p.mood.shade(rgb("fbfdff"), 0.55 * layer.distance)
    p.canvas.polygon(side + zigzag, snow)
    east = [p for p in side if p[0] >= x]
    p.canvas.polygon([*east, *zigzag[:3], (x, y + 0.5 * (hem - y))], mix(snow, shadow, 0.35))


def _volcano_relief(
    p: Painting, layer: Layer, peak: tuple[float, float, float], shadow: Colour, horizon: float
) -> None:
    """Shadowed flank, glowing crater, streams of lava and a leaning plume of smoke."""
    x, y, half = peak
    right = [(t, layer.edge[int(t)]) for t in np.linspace(x + 4, min(x + half, SIZE), 14)]
    p.canvas.polygon([(x + 2, y), *right, (x + 0.25 * half, horizon + 2)], shadow, 0.7)
    if p.scene.ground == "snow":
        hem = y + 0.3 * (horizon - y)
        side = [(t, layer.edge[t]) for t in range(SIZE) if layer.edge[t] < hem and abs(t - x) < half]
        p.canvas.polygon(
            [*side, (side[-1][0] - 5, hem + 7), (x + 4, hem - 5), (x - 6, hem + 6), (side[0][0] + 4, hem)],
            p.mood.shade(rgb("f4f8fc"), 0.3),
        )
    lean = p.rng.uniform(-0.2, 0.2)
    smoke = mix(p.mood.haze, rgb("565262"), 0.55)
    for i in range(6):
        p.canvas.disc(
            x + lean * i * 9 + p.rng.uniform(-3, 3),
            y - 4 - 9.0 * i,
            7 + 2.2 * i,
            mix(smoke, p.mood.sky[1], 0.1 * i),
            0.8,
        )
    p.canvas.glow(x, y, 34, rgb("ff8a3c"), 0.8)
    p.canvas.ellipse(x, y + 1, 13, 4, rgb("ffb347"))
    for drift in (-0.42, 0.05, 0.5):
        length = p.rng.uniform(0.35, 0.7) * (horizon - y)
        end = x + drift * length * 0.9
        p.canvas.polygon(
            [
                (x + 9 * drift - 3, y + 1),
                (x + 9 * drift + 3, y + 1),
                (end + 1, y + length),
                (end - 1, y + length),
            ],
            rgb("ff6a2b"),
        )


def draw_ground(p: Painting, horizon: float) -> None:
    """Three overlapping rolls of ground from the horizon to the lower edge."""
    own = GROUND[p.scene.ground]
    tones = {"snow": (1.0, 0.97, 1.0), "sand": (0.98, 1.0, 0.95)}.get(p.scene.ground, (1.0, 0.9, 0.78))
    for distance, tone, y, height in zip(
        (0.34, 0.16, 0.0), tones, (horizon, horizon + 30, horizon + 66), (0, 12, 16), strict=True
    ):
        edge = (
            _waves(p.rng, y + 0.5 * height, height, p.rng.uniform(200, 330))
            if height
            else np.full(SIZE + 1, y)
        )
        colour = p.mood.shade(own * tone, distance)
        p.canvas.gradient(edge.min(), SIZE, (colour, colour * 0.93), _below(edge, SIZE))


def water_colours(p: Painting) -> tuple[Colour, Colour]:
    """Water mirrors the sky: pale below the horizon, deep in front."""
    deep = mix(p.mood.sky[0], rgb("1d5f8a") * p.mood.light, 0.5)
    return mix(p.mood.sky[2], deep, 0.28), deep


def _rim_colour(p: Painting) -> Colour:
    """The darker edge of the ground where it meets a lake or a river."""
    return p.mood.shade(GROUND[p.scene.ground] * (0.72 if p.scene.ground != "snow" else 0.84), 0.1)


def _ripples(p: Painting, colour: Colour, spots: list[tuple[float, float, float]]) -> None:
    for x, y, w in spots:
        p.canvas.ellipse(x, y, w, 0.9, colour, 0.55)


def draw_sea(p: Painting, horizon: float, shore: np.ndarray, light_x: float | None) -> None:
    """Open water from the horizon to the shore line (257 heights), with foam along it."""
    near, deep = water_colours(p)
    outline = np.concatenate([np.stack([_X, shore], -1), [(SIZE, horizon), (0, horizon)]])
    p.canvas.gradient(horizon, shore.max() + 1, (near, deep, mix(deep, near, 0.45)), outline)
    crest = mix(near, rgb("ffffff"), 0.4 if p.mood.dark else 0.65)
    rows = np.linspace(horizon + 10, shore.min() - 8, 5)
    _ripples(p, crest, [(p.rng.uniform(0, SIZE), y, p.rng.uniform(12, 26)) for y in rows for _ in range(3)])
    _glitter(p, light_x, horizon, float(shore.min()))
    p.canvas.line(np.stack([_X, shore], -1)[::4], crest, 3.2, 0.9)


def draw_lake(
    p: Painting, centre: tuple[float, float], radii: tuple[float, float], light_x: float | None
) -> None:
    near, deep = water_colours(p)
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    wobble = (
        1 + 0.05 * np.sin(3 * angle + p.rng.uniform(0, 6)) + 0.03 * np.sin(5 * angle + p.rng.uniform(0, 6))
    )
    (x, y), (rx, ry) = centre, radii
    shape = np.stack([x + rx * wobble * np.cos(angle), y + ry * wobble * np.sin(angle)], -1)
    rim = _rim_colour(p)
    p.canvas.polygon(shape * (1.025, 1.0) - (0.025 * x, 2.2), rim)
    p.canvas.gradient(y - 1.1 * ry, y + 1.1 * ry, (near, deep), shape)
    crest = mix(near, rgb("ffffff"), 0.5)
    spots = [
        (x + p.rng.uniform(-0.6, 0.6) * rx, y + f * ry, p.rng.uniform(9, 18)) for f in (-0.5, -0.1, 0.3, 0.6)
    ]
    _ripples(p, crest, spots)
    if light_x is not None and abs(light_x - x) < 0.7 * rx:
        _glitter(p, light_x, y - 0.75 * ry, y + 0.5 * ry)


def _glitter(p: Painting, x: float | None, top: float, bottom: float) -> None:
    """The light's own path on the water."""
    if x is None:
        return
    colour = mix(p.mood.sky[2], rgb("fff6d8"), 0.75)
    for i, y in enumerate(np.arange(top + 3, bottom, 5.5)):
        p.canvas.ellipse(x + p.rng.uniform(-3, 3), y, 8 + 0.7 * i + p.rng.uniform(-2, 2), 1.3, colour, 0.8)


def winding(
    rng: np.random.Generator,
    top: tuple[float, float],
    bottom: tuple[float, float],
    widths: tuple[float, float],
    bends: float,
) -> np.ndarray:
    """A band that swings from `top` to `bottom`, widening toward the viewer."""
    t = np.linspace(0, 1, 48)
    near = t**1.6
    swing = rng.choice((-1, 1)) * 46 * np.sin(bends * np.pi * t**0.75) * (0.25 + 0.75 * near) * (1 - near**3)
    x = top[0] + (bottom[0] - top[0]) * near + swing
    y = top[1] + (bottom[1] - top[1]) * t
    half = 0.5 * (widths[0] + (widths[1] - widths[0]) * near)
    return np.concatenate([np.stack([x - half, y], -1), np.stack([x + half, y], -1)[::-1]])


def river_band(rng: np.random.Generator, horizon: float, side: float) -> np.ndarray:
    """The outline of a river that rises away from `side`, where the building stands."""
    top = SIZE / 2 - side * rng.uniform(0, 36)
    return winding(rng, (top, horizon), (rng.uniform(108, 148), SIZE + 2), (6, 84), 2.2)


def river_at(band: np.ndarray, y: float) -> tuple[float, float]:
    """The x of both banks of a winding band at height y."""
    half = len(band) // 2
    left, right = band[:half], band[half:][::-1]
    return float(np.interp(y, left[:, 1], left[:, 0])), float(np.interp(y, right[:, 1], right[:, 0]))


def draw_river(p: Painting, horizon: float, band: np.ndarray) -> None:
    near, deep = water_colours(p)
    middle = 0.5 * (band[:48] + band[48:][::-1])
    rim = _rim_colour(p)
    wide = np.concatenate(
        [
            middle + 1.07 * (band[:48] - middle) - (1.2, 0),
            (middle + 1.07 * (band[48:][::-1] - middle) + (1.2, 0))[::-1],
        ]
    )
    p.canvas.polygon(wide, rim)
    p.canvas.gradient(horizon, SIZE, (near, deep), band)
    crest = mix(near, rgb("ffffff"), 0.5)
    _ripples(
        p,
        crest,
        [(*middle[i] + (p.rng.uniform(-0.15, 0.15) * i, 0), 2.0 + 0.26 * i) for i in range(14, 48, 6)],
    )


def draw_path(p: Painting, start: tuple[float, float]) -> None:
    own = rgb("d8b98a") if p.scene.ground != "sand" else rgb("b98d5c")
    own = mix(own, rgb("a9a2b0"), 0.6) if p.scene.ground == "snow" else own
    band = winding(p.rng, start, (p.rng.uniform(90, 166), SIZE + 2), (6, 58), 1.7)
    p.canvas.gradient(start[1], SIZE, (p.mood.shade(own, 0.15), p.mood.shade(own * 0.95)), band)

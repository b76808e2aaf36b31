"""Puts a picture together, from the sky in the back to the weather in front."""

from __future__ import annotations

import numpy as np

from checkpoints.recipe.drawing import land, sky, things
from checkpoints.recipe.drawing.canvas import SIZE, Canvas, mix, rgb
from checkpoints.recipe.drawing.mood import mood_of
from checkpoints.recipe.drawing.painting import Painting
from checkpoints.recipe.scenes import Scene

_X = np.arange(SIZE + 1, dtype=float)


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw one picture of the scene.

    Layout, counts, sizes and tints come from `rng`; everything the scene names is in the picture, large
    enough to be recognised.

    Returns:
        (256, 256, 3) uint8, RGB.
    """
    p = Painting(Canvas(), scene, mood_of(scene, rng), rng)
    horizon = float(p.rng.uniform(128, 146))
    layers = land.skyline_layers(scene, rng, horizon)
    skyline = np.minimum.reduce([layer.edge for layer in layers])

    sky.draw_sky(p, horizon + 4)
    if p.scene.stars == "stars":
        sky.draw_stars(p, horizon)
    if p.scene.feature == "aurora":
        sky.draw_aurora(p, horizon)
    light = sky.draw_light(p, skyline)
    sky.draw_clouds(p, horizon, light)
    if p.scene.feature == "rainbow":
        sky.draw_rainbow(p, horizon)
    if p.scene.feature == "meteor":
        sky.draw_meteor(p, light)
    if p.scene.feature == "lightning":
        sky.draw_lightning(p, horizon)
    land.draw_skyline(p, layers, horizon)
    land.draw_ground(p, horizon)
    _draw_water_and_things(p, horizon, light[0] if light else None)
    if p.scene.feature == "balloon":
        sky.draw_balloon(p, light)
    if p.scene.birds == "birds":
        sky.draw_birds(p, light)
    _draw_weather(p, horizon)
    return p.canvas.finish()


def _draw_water_and_things(p: Painting, horizon: float, light_x: float | None) -> None:
    """Lay the water, then stand everything else where the water leaves room, far things first."""
    side = p.rng.choice((-1, 1))
    house_x = SIZE / 2 + side * p.rng.uniform(30, 78)
    house_y, house_h = horizon + p.rng.uniform(26, 40), p.rng.uniform(52, 62)
    boat: tuple[float, float, float] | None = None
    far_row, near_row = horizon + p.rng.uniform(5, 12), p.rng.uniform(222, 240)
    if p.scene.water == "sea":
        tilt = p.rng.uniform(-12, 12)
        shore = 208 + tilt * (_X / SIZE - 0.5) + 5 * np.sin(2 * np.pi * (_X / 150 + p.rng.uniform()))
        land.draw_sea(p, horizon, shore, light_x)
        house_y, house_h = float(shore[int(house_x)]) + p.rng.uniform(12, 20), p.rng.uniform(56, 66)
        boat = (
            SIZE / 2 - side * p.rng.uniform(6, 70),
            horizon + p.rng.uniform(26, 44),
            p.rng.uniform(46, 58),
        )
        near_row = p.rng.uniform(236, 246)
    elif p.scene.water == "lake":
        centre = (SIZE / 2 - side * p.rng.uniform(0, 26), horizon + p.rng.uniform(46, 54))
        radii = (p.rng.uniform(84, 112), p.rng.uniform(25, 31))
        house_y, house_h = horizon + p.rng.uniform(12, 18), p.rng.uniform(46, 54)
        boat = (centre[0] + p.rng.uniform(-34, 34), centre[1] + p.rng.uniform(0, 10), p.rng.uniform(42, 50))
        if p.scene.path == "path":
            land.draw_path(p, (house_x, house_y))
        land.draw_lake(p, centre, radii, light_x)
    elif p.scene.water == "river":
        land.draw_river(p, horizon)
        house_x = SIZE / 2 + side * p.rng.uniform(74, 92)
    elif p.scene.path == "path":
        land.draw_path(p, (house_x, house_y))

    if p.scene.flowers == "flowers":
        top = {"sea": 218.0, "lake": horizon + 84}.get(p.scene.water, horizon + 46)
        things.draw_flowers(p, min(top, 224))
    if boat and p.scene.boat == "sailboat":
        things.draw_sailboat(p, *boat)
    _draw_plants_and_house(p, (house_x, house_y, house_h), far_row, near_row)


def _draw_plants_and_house(
    p: Painting,
    house: tuple[float, float, float],
    far_row: float,
    near_row: float,
) -> None:
    """A distant row of plants and large ones at the edges in front; none hides the building."""
    x0, y0, h0 = house
    spots: list[tuple[float, float, float, float]] = []  # x, y, height, distance
    if p.scene.vegetation != "none":
        if p.scene.water != "sea":
            for x in np.linspace(8, SIZE - 8, 9) + p.rng.uniform(-10, 10, 9):
                if p.rng.random() < 0.62:
                    spots.append((x, far_row + p.rng.uniform(0, 9), p.rng.uniform(30, 42), 0.42))
        edges = [
            p.rng.uniform(6, 46),
            p.rng.uniform(SIZE - 46, SIZE - 6),
            p.rng.uniform(40, 80),
            p.rng.uniform(SIZE - 80, SIZE - 40),
        ]
        count = int(p.rng.integers(3, 5)) if p.scene.water == "sea" else int(p.rng.integers(2, 5))
        for x in p.rng.permutation(edges)[:count]:
            spots.append((x, near_row + p.rng.uniform(-10, 10), p.rng.uniform(62, 86), 0.0))
        spots = [s for s in spots if p.scene.building == "none" or abs(s[0] - x0) > (44 if s[3] == 0 else 36)]
    standing: list[tuple[float, things.Painter, float, float, float]] = []  # y, painter, x, height, distance
    if spots:
        plant, scale = things.PLANTS[p.scene.vegetation]
        standing += [(y, plant, x, h * scale, d) for x, y, h, d in spots]
    if p.scene.building != "none":
        standing.append((y0, things.BUILDINGS[p.scene.building], x0, h0, 0.08))
    for y, paint, x, height, distance in sorted(standing, key=lambda thing: thing[0]):
        paint(p, x, y, height, distance)


def _draw_weather(p: Painting, horizon: float) -> None:
    if p.scene.weather == "fog":
        y = np.arange(0, SIZE, 4, dtype=float)[:, None]
        x = np.arange(0, SIZE, 4, dtype=float)[None, :]
        drift = 7 * np.sin(x / 36 + p.rng.uniform(0, 6))
        alpha = 0.8 * np.exp(-(((y + drift - horizon - 6) / 30) ** 2))
        alpha += 0.55 * np.exp(-(((y - drift - horizon - 64) / 17) ** 2))
        p.canvas.veil(alpha, mix(p.mood.haze, rgb("ffffff"), 0.25 if p.mood.dark else 0.6))
    elif p.scene.weather == "rain":
        slant = p.rng.uniform(-0.32, 0.32)
        colour = mix(p.mood.sky[2], rgb("ffffff"), 0.55)
        for x in np.linspace(0, SIZE, 8):
            for y in np.linspace(0, SIZE - 26, 5):
                px, py = x + p.rng.uniform(-8, 8), y + p.rng.uniform(-12, 12)
                p.canvas.line([(px, py), (px + slant * 26, py + 26)], colour, 2.6, 0.6)
    elif p.scene.weather == "snowfall":
        for x in np.linspace(10, SIZE - 10, 7):
            for y in np.linspace(10, SIZE - 10, 7):
                r = p.rng.uniform(2.8, 4.8)
                p.canvas.disc(x + p.rng.uniform(-11, 11), y + p.rng.uniform(-11, 11), r, rgb("ffffff"), 0.92)

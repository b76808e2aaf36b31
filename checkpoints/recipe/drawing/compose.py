"""Puts a picture together: first a place for everything, then the painting from the sky to the weather."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from checkpoints.recipe.drawing import land, sky, things
from checkpoints.recipe.drawing.canvas import SIZE, Canvas, mix, rgb
from checkpoints.recipe.drawing.mood import mood_of
from checkpoints.recipe.drawing.painting import Painting
from checkpoints.recipe.drawing.places import AIR, Box, Places, around
from checkpoints.recipe.scenes import Scene

_X = np.arange(SIZE + 1, dtype=float)
SCALES = (1.0, 0.85, 0.72)
"""How much smaller a thing may become to find a place of its own."""

Standing = tuple[float, float, float]
"""x and y of the foot, and the height."""


@dataclass
class Plan:
    """Where everything goes.

    Attributes:
        horizon: y of the horizon.
        side: -1 where the building stands on the left, 1 on the right.
        layers: the skyline's silhouettes, from back to front.
        building: foot and height; also where a path begins.
        plants: foot, height and distance of each.
        sky: place and scale of each thing in the sky, by name; of a rainbow its middle's x and its radius.
        birds_stacked: whether two birds fly one above the other, where there is no room for a line.
        clouds: x, y and width of each scattered cloud.
        stars: x and y of each.
    """

    horizon: float
    side: float
    layers: list[land.Layer]
    building: Standing
    shore: np.ndarray
    lake: tuple[tuple[float, float], tuple[float, float]]
    river: np.ndarray
    boat: Standing | None = None
    plants: list[tuple[float, float, float, float]] = field(default_factory=list)
    sky: dict[str, tuple[float, ...]] = field(default_factory=dict)
    birds_stacked: bool = False
    clouds: list[tuple[float, float, float]] = field(default_factory=list)
    stars: list[tuple[float, float]] = field(default_factory=list)
    places: Places = field(default_factory=Places)


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw one picture of the scene.

    Layout, counts, sizes and tints come from `rng`; everything the scene names is in the picture, large
    enough to be recognised, and as far as there is room with air around it.

    Returns:
        (256, 256, 3) uint8, RGB.
    """
    return paint(scene, rng).finish()


def draw_with_layout(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The picture that `draw` gives, and what is where: (32, 32) uint8, indices of `canvas.KINDS`."""
    canvas = paint(scene, rng)
    return canvas.finish(), canvas.layout()


def paint(scene: Scene, rng: np.random.Generator) -> Canvas:
    p = Painting(Canvas(), scene, mood_of(scene, rng), rng)
    plan = make_plan(scene, rng)
    _paint_sky(p, plan)
    p.canvas.kind = "terrain"
    land.draw_skyline(p, plan.layers, plan.horizon)
    if "lightning" in plan.sky:  # strikes in front of the mountains, so that all of it is seen
        p.canvas.kind = "feature"
        sky.draw_lightning(p, *plan.sky["lightning"])
    p.canvas.kind = "ground"
    land.draw_ground(p, plan.horizon)
    _paint_land(p, plan)
    if "balloon" in plan.sky:
        p.canvas.kind = "feature"
        sky.draw_balloon(p, *plan.sky["balloon"])
    if "birds" in plan.sky:
        p.canvas.kind = "birds"
        sky.draw_birds(p, *plan.sky["birds"], stacked=plan.birds_stacked)
    _draw_weather(p, plan.horizon)
    return p.canvas


def make_plan(scene: Scene, rng: np.random.Generator) -> Plan:
    """Give every thing of the scene its place: the large ones first, what can be left out last."""
    horizon, side = float(rng.uniform(132, 146)), float(rng.choice((-1, 1)))
    shore = (
        206 + rng.uniform(-10, 10) * (_X / SIZE - 0.5) + 5 * np.sin(2 * np.pi * (_X / 150 + rng.uniform()))
    )
    middle = (SIZE / 2 - side * rng.uniform(0, 12), horizon + rng.uniform(46, 52))
    plan = Plan(
        horizon,
        side,
        land.skyline_layers(scene, rng, horizon, side),
        _building(scene, rng, horizon, side, shore),
        shore,
        (middle, (rng.uniform(70, 86), rng.uniform(24, 29))),
        land.river_band(rng, horizon, side),
    )
    if scene.building != "none":
        x, y, h = plan.building
        half, up = things.BUILDING_REACH[scene.building]
        plan.places.take(around(x, y, half * h, up * h, 0))
    _plan_sky(scene, rng, plan)
    _plan_land(scene, rng, plan)
    return plan


def _building(
    scene: Scene, rng: np.random.Generator, horizon: float, side: float, shore: np.ndarray
) -> Standing:
    x = SIZE / 2 + side * rng.uniform(56, 74)
    if scene.water == "sea":
        return x, float(shore[int(x)]) + rng.uniform(14, 22), rng.uniform(54, 62)
    if scene.water == "lake":
        return x, horizon + rng.uniform(10, 15), rng.uniform(46, 52)
    return x, horizon + rng.uniform(26, 40), rng.uniform(52, 60)


def _plan_land(scene: Scene, rng: np.random.Generator, plan: Plan) -> None:
    horizon, places = plan.horizon, plan.places
    if scene.boat == "sailboat":
        h = rng.uniform(46, 54) if scene.water == "sea" else rng.uniform(40, 46)
        (x, y), (rx, _) = plan.lake
        xs, ys = (x - 0.5 * rx, x + 0.5 * rx), (y + 2, y + 10)
        if scene.water == "sea":
            xs, ys = (40.0, SIZE - 40.0), (horizon + 30, horizon + 44)
        x, y, scale, _ = places.find(rng, (0.55 * h, 1.05 * h, 3), xs, ys, scales=(1.0, 0.85))
        plan.boat = (x, y, scale * h)
    if scene.vegetation == "none":
        return
    _, scale = things.PLANTS[scene.vegetation]
    near = rng.uniform(226, 240) if scene.water != "sea" else rng.uniform(238, 246)
    half = things.PLANT_HALF[scene.vegetation]
    for x in rng.permutation([28.0, 74.0, 182.0, 228.0])[: int(rng.integers(2, 4))]:
        h = scale * rng.uniform(56, 72)
        x, y = x + rng.uniform(-8, 8), near + rng.uniform(-8, 6)
        box = around(x, y, half * h, h, 0)
        if places.gap(box) >= 0.5 * AIR and not _on_water(scene, plan, box):
            places.take(box)
            plan.plants.append((x, y, h, 0.0))
    if scene.water != "sea":
        row = horizon + rng.uniform(5, 10)
        for x in np.linspace(18, SIZE - 18, 7) + rng.uniform(-7, 7, 7):
            h, y = scale * rng.uniform(30, 38), row + rng.uniform(0, 6)
            box = around(x, y, half * h, h, 0)
            if rng.random() < 0.75 and places.gap(box) >= 3 and not _on_water(scene, plan, box):
                places.take(box)
                plan.plants.append((x, y, h, 0.4))
    if not plan.plants:  # always something of what the scene names
        h = scale * 58
        x, y, scale, _ = places.find(rng, (half * h, h, 0), (26, SIZE - 26), (near, near + 1), scales=SCALES)
        plan.plants.append((x, y, scale * h, 0.0))


def _on_water(scene: Scene, plan: Plan, box: Box) -> bool:
    """Whether the foot of a box would stand in the lake or the river, or its crown hide much of the lake."""
    x, y = 0.5 * (box.x0 + box.x1), box.y1
    if scene.water == "lake":
        (cx, cy), (rx, ry) = plan.lake
        return any(
            ((v - cx) / (rx + 4)) ** 2 + ((w - cy) / (ry + 4)) ** 2 < 1
            for v in (box.x0, x, box.x1)
            for w in (y, 0.6 * y + 0.4 * box.y0)
        )
    if scene.water == "river":
        left, right = land.river_at(plan.river, y)
        return box.x1 > left - 4 and box.x0 < right + 4
    return False


def _plan_sky(scene: Scene, rng: np.random.Generator, plan: Plan) -> None:
    """Give the large things in the sky their places first."""
    horizon, places = plan.horizon, plan.places
    skyline = np.minimum.reduce([layer.edge for layer in plan.layers])
    top = 52.0 if scene.clouds == "overcast" else 8.0
    if scene.clouds == "overcast":
        places.take(Box(-SIZE, -SIZE, 2 * SIZE, 46))
    if scene.terrain == "volcano":
        x, y, half = plan.layers[-1].peaks[0]
        places.take(Box(x - 0.5 * half, y - 4, x + 0.5 * half, horizon))
        places.take(Box(x - 24, -SIZE, x + 24, y))

    def find(
        name: str, size: tuple[float, float, float], ys: tuple[float, float], clear: bool = True
    ) -> float:
        half, up, _ = size
        low = max(ys[0], top + up)
        x, y, scale, gap = places.find(
            rng,
            size,
            (half + 8, SIZE - half - 8),
            (low, max(ys[1], low + 16)),
            skyline if clear else None,
            SCALES,
        )
        plan.sky[name] = (x, y, scale)
        return gap

    if scene.feature == "rainbow":
        x, r = SIZE / 2 - plan.side * rng.uniform(40, 54), rng.uniform(66, 74)
        plan.sky["rainbow"] = (x, r)
        for angle in np.linspace(0, np.pi, 17):
            places.take(around(x + (r - 10) * np.cos(angle), horizon + 6 - (r - 10) * np.sin(angle), 9, 9, 9))
    elif scene.feature == "lightning":
        height = horizon - 46
        x, _, scale, _ = places.find(
            rng, (27, 0, height), (34, SIZE - 34), (42, 43), scales=(1.0, 0.85, 0.7, 0.55)
        )
        plan.sky["lightning"] = (x, 42.0, scale * height)
    elif scene.feature == "balloon":
        find("balloon", (sky.BALLOON, sky.BALLOON, 2.1 * sky.BALLOON), (0, 70), clear=False)
    if scene.light != "none":
        low = scene.time in ("dawn", "sunset")
        find("light", (sky.LIGHT,) * 3, (52, 100) if low else (0, 64))
    if scene.feature == "meteor":
        find("meteor", (34, 20, 14), (0, 76))
    if scene.birds == "birds" and find("birds", (49, 22, 16), (0, 100)) < 0:
        places.taken.pop()  # no room for a line of birds: two, one above the other
        find("birds", (30, 28, 24), (0, 100))
        plan.birds_stacked = True
    if scene.clouds == "scattered":
        for i in range(int(rng.integers(3, 6))):
            w = rng.uniform(52, 84)
            before = len(places.taken)
            x, y, scale, gap = places.find(
                rng, (0.52 * w, 0.34 * w, 0.06 * w), (10, SIZE - 10), (24, 0.6 * horizon), scales=SCALES
            )
            if i == 0 or gap > 0:
                plan.clouds.append((x, y, scale * w))
            else:
                del places.taken[before:]
    if scene.stars == "stars":
        spots = sky.star_grid(rng, horizon)
        gaps = [places.gap(around(*spot, 3, 3, 3)) for spot in spots]
        needed = sorted(gaps)[-5]  # a starry sky has five at least, however crowded
        plan.stars = [spot for spot, gap in zip(spots, gaps, strict=True) if gap >= min(2.0, needed)]


def _paint_sky(p: Painting, plan: Plan) -> None:
    sky.draw_sky(p, plan.horizon + 4)
    p.canvas.kind = "stars"
    sky.draw_stars(p, plan.stars)
    if p.scene.feature == "aurora":
        sky.draw_aurora(p, plan.horizon)
    p.canvas.kind = "light"
    if "light" in plan.sky:
        sky.draw_light(p, *plan.sky["light"])
    p.canvas.kind = "clouds"
    sky.draw_clouds(p, plan.clouds)
    p.canvas.kind = "feature"
    if "rainbow" in plan.sky:
        sky.draw_rainbow(p, plan.horizon, *plan.sky["rainbow"])
    if "meteor" in plan.sky:
        sky.draw_meteor(p, *plan.sky["meteor"])


def _paint_land(p: Painting, plan: Plan) -> None:
    """Lay path and water, then stand everything else on the land, far things first."""
    x0, y0, h0 = plan.building
    light_x = plan.sky["light"][0] if "light" in plan.sky else None
    if p.scene.path == "path" and p.scene.water in ("none", "lake"):
        p.canvas.kind = "path"
        land.draw_path(p, (x0, y0))
    p.canvas.kind = "water"
    if p.scene.water == "sea":
        land.draw_sea(p, plan.horizon, plan.shore, light_x)
    elif p.scene.water == "lake":
        land.draw_lake(p, *plan.lake, light_x)
    elif p.scene.water == "river":
        land.draw_river(p, plan.horizon, plan.river)
    if p.scene.flowers == "flowers":
        p.canvas.kind = "flowers"
        top = {"sea": 222.0, "lake": plan.horizon + 86}.get(p.scene.water, plan.horizon + 50)
        things.draw_flowers(p, min(top, 226), plan.places, plan.river if p.scene.water == "river" else None)
    if plan.boat:
        p.canvas.kind = "boat"
        things.draw_sailboat(p, *plan.boat)
    standing: list[tuple[float, str, things.Painter, float, float, float]] = []
    for x, y, h, distance in plan.plants:
        standing.append((y, "vegetation", things.PLANTS[p.scene.vegetation][0], x, h, distance))
    if p.scene.building != "none":
        standing.append((y0, "building", things.BUILDINGS[p.scene.building], x0, h0, 0.08))
    for y, kind, paint_thing, x, height, distance in sorted(standing, key=lambda thing: thing[0]):
        p.canvas.kind = kind
        paint_thing(p, x, y, height, distance)


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

"""The composition of drawings: every thing has a place of its own, and all that a scene names is seen."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest

from checkpoints.recipe.data import scene_of
from checkpoints.recipe.drawing import draw, draw_with_layout, things
from checkpoints.recipe.drawing.canvas import KINDS, LAYOUT_SIZE
from checkpoints.recipe.drawing.compose import Plan, make_plan
from checkpoints.recipe.drawing.places import AIR, Box, Places, around
from checkpoints.recipe.drawing.sky import BALLOON, LIGHT
from checkpoints.recipe.scenes import Scene

SHOWN_AS = {
    "water": "water", "vegetation": "vegetation", "building": "building", "boat": "boat", "birds": "birds",
    "light": "light", "stars": "stars", "flowers": "flowers",
}  # fmt: skip


def _boxes(scene: Scene, plan: Plan) -> Iterator[tuple[str, Box]]:
    """What must not be mixed up: the building, the boat, the light, the birds, the balloon, the bolt."""
    if scene.building != "none":
        x, y, h = plan.building
        half, up = things.BUILDING_REACH[scene.building]
        yield "building", around(x, y, half * h, up * h, 0)
    if plan.boat:
        x, y, h = plan.boat
        yield "boat", around(x, y, 0.55 * h, 1.05 * h, 0)
    for name, (half, up, down) in {
        "light": (LIGHT, LIGHT, LIGHT), "balloon": (BALLOON, BALLOON, 2 * BALLOON), "birds": (26, 18, 14)
    }.items():  # fmt: skip
        if name in plan.sky:
            x, y, scale = plan.sky[name][:3]
            yield name, around(x, y, scale * half, scale * up, scale * down)
    if "lightning" in plan.sky:
        x, top, height = plan.sky["lightning"]
        yield "lightning", around(x, top, 26, 0, height)


def test_large_things_do_not_overlap() -> None:
    crowded = []
    for i in range(400):
        scene, rng = scene_of("fresh", i)
        boxes = list(_boxes(scene, make_plan(scene, rng)))
        crowded += [(i, a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.gap(other) < -1]
    assert len({i for i, _, _ in crowded}) <= 12, (
        crowded
    )  # 3 %: where a scene names more than there is room for


def test_plants_keep_away_from_buildings_and_boats() -> None:
    for i in range(300):
        scene, rng = scene_of("fresh", i)
        plan = make_plan(scene, rng)
        if len(plan.plants) < 2:  # a single one had to find room somewhere
            continue
        half = things.PLANT_HALF[scene.vegetation]
        for name, box in _boxes(scene, plan):
            gaps = [box.gap(around(x, y, half * h, h, 0)) for x, y, h, _ in plan.plants]
            assert name not in ("building", "boat", "balloon", "lightning") or min(gaps) >= -1, (i, name)


def test_everything_a_scene_names_can_be_seen() -> None:
    for i in range(150):
        scene, rng = scene_of("fresh", i)
        _, layout = draw_with_layout(scene, rng)
        cells = dict(zip(KINDS, np.bincount(layout.ravel(), minlength=len(KINDS)), strict=True))
        for attribute, kind in SHOWN_AS.items():
            assert getattr(scene, attribute) == "none" or cells[kind] >= 3, (i, attribute)
        assert scene.feature in ("none", "aurora") or cells["feature"] >= 6, (i, scene.feature)


def test_a_layout_shows_nothing_that_the_scene_does_not_name() -> None:
    for i in range(60):
        scene, rng = scene_of("fresh", i)
        picture, layout = draw_with_layout(scene, rng)
        assert layout.shape == (LAYOUT_SIZE, LAYOUT_SIZE) and layout.dtype == np.uint8
        shown = {KINDS[k] for k in np.unique(layout)}
        for attribute, kind in SHOWN_AS.items():
            assert getattr(scene, attribute) != "none" or kind not in shown, (i, attribute)
        assert np.array_equal(picture, draw(*scene_of("fresh", i)))


def test_a_place_keeps_its_distance_as_long_as_there_is_room() -> None:
    rng, places = np.random.default_rng(0), Places()
    for _ in range(5):
        assert places.find(rng, (10, 10, 10), (12, 244), (12, 244)).gap >= AIR
    full = Places([Box(0, 0, 256, 256)])
    assert full.find(rng, (10, 10, 10), (12, 244), (12, 244)).gap < 0


def test_a_thing_becomes_smaller_where_it_does_not_fit() -> None:
    places = Places([Box(-9, -9, 100, 300), Box(150, -9, 300, 300)])
    spot = places.find(np.random.default_rng(0), (28, 28, 28), (100, 150), (50, 200), scales=(1.0, 0.6))
    assert spot.scale == 0.6 and spot.gap >= 0.5 * AIR


@pytest.mark.parametrize("scale", [1.0, 0.85])
def test_a_thing_on_the_skyline_stays_above_it(scale: float) -> None:
    skyline = np.full(257, 90.0)
    spot = Places().find(np.random.default_rng(1), (20, 20, 20), (30, 220), (20, 200), skyline, (scale,))
    assert spot.y + 20 * scale <= 90

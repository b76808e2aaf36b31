"""What a landscape is: fifteen attributes, each with a small set of values, and how they occur together.

A `Scene` is the common language of the recipe: the renderer draws it, the captioner says it, the readers
recover it from pixels. It holds what can be *named*; where things stand and how large they are is left to
the seed of the drawing, so that one scene has endlessly many pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "time": ("dawn", "day", "sunset", "dusk", "night"),
    "terrain": ("mountains", "hills", "dunes", "mesa", "volcano", "plain"),
    "ground": ("grass", "autumn", "snow", "sand"),
    "water": ("none", "lake", "river", "sea"),
    "vegetation": ("none", "firs", "leafy", "blossom", "palms", "cacti"),
    "building": ("none", "cabin", "lighthouse", "windmill", "castle", "tent"),
    "boat": ("none", "sailboat"),
    "birds": ("none", "birds"),
    "light": ("none", "sun", "moon", "crescent"),
    "stars": ("none", "stars"),
    "clouds": ("clear", "scattered", "overcast"),
    "weather": ("calm", "fog", "rain", "snowfall"),
    "feature": ("none", "rainbow", "aurora", "balloon", "meteor", "lightning"),
    "flowers": ("none", "flowers"),
    "path": ("none", "path"),
}
"""Attribute -> its values. The first value of most is the absence that a caption usually passes over."""

ABSENT = ("none", "calm")
"""Values that mean "nothing of this kind here"."""


@dataclass(frozen=True)
class Scene:
    """One value of every attribute; field order is that of `ATTRIBUTES`."""

    time: str
    terrain: str
    ground: str
    water: str
    vegetation: str
    building: str
    boat: str
    birds: str
    light: str
    stars: str
    clouds: str
    weather: str
    feature: str
    flowers: str
    path: str

    def __post_init__(self) -> None:
        for name, values in ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(values)}")

    def labels(self) -> np.ndarray:
        """The value indices, shape (15,), int64, in the order of `ATTRIBUTES`."""
        return np.array([ATTRIBUTES[f.name].index(getattr(self, f.name)) for f in fields(self)])

    @staticmethod
    def from_labels(labels: np.ndarray) -> Scene:
        """The inverse of `labels`."""
        return Scene(*(values[int(i)] for values, i in zip(ATTRIBUTES.values(), labels, strict=True)))


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene whose parts can be seen together.

    Values are kept as independent as physics and visibility allow, so that a model trained on them can also
    combine what seldom meets: no boat without open water, no stars by day, no sun behind an overcast.
    """

    def pick(**weights: float) -> str:
        p = np.array(list(weights.values()))
        return str(rng.choice(list(weights), p=p / p.sum()))

    time = pick(dawn=1, day=1.3, sunset=1.2, dusk=1, night=1.1)
    dark = time in ("dusk", "night")
    terrain = pick(mountains=1.5, hills=1.1, dunes=0.9, mesa=0.8, volcano=0.8, plain=0.8)
    arid = terrain in ("dunes", "mesa")
    ground = pick(sand=1) if arid else pick(grass=1.4, autumn=1, snow=1.2, sand=0.5)
    # A wide river or lake among dunes reads as an oasis; both stay rare there.
    water = pick(none=1.6, lake=0.7, river=0.5, sea=0.8) if arid else pick(none=1, lake=1.1, river=0.9, sea=1)
    vegetation = {
        "grass": lambda: pick(none=0.8, firs=1, leafy=1, blossom=0.9, palms=0.5, cacti=0.2),
        "autumn": lambda: pick(none=0.8, firs=1, leafy=1.6, blossom=0.2, palms=0.2, cacti=0.2),
        "snow": lambda: pick(none=0.8, firs=2, leafy=0.6, blossom=0.3),
        "sand": lambda: pick(none=0.8, firs=0.2, leafy=0.3, blossom=0.2, palms=1.2, cacti=1.5),
    }[ground]()
    building = pick(none=1.5, cabin=1, lighthouse=0.8, windmill=1, castle=1.3, tent=0.8)
    boat = pick(none=1, sailboat=1) if water in ("lake", "sea") else "none"
    weather = pick(calm=3, fog=0.8, rain=0.9, snowfall=1.6 if ground == "snow" else 0)
    clouds = (
        pick(scattered=0.4, overcast=1) if weather == "rain" else pick(clear=1.2, scattered=1.1, overcast=0.7)
    )
    if clouds == "overcast":
        light = stars = "none"
    elif dark:
        light = pick(none=0.8, moon=1, crescent=1.4)
        stars = pick(none=0.5, stars=1) if time == "night" else pick(none=1, stars=0.6)
    else:
        light, stars = pick(none=0.7, sun=1.6), "none"
    if dark:
        feature = pick(none=2, aurora=1.1, meteor=1) if clouds != "overcast" else "none"
    else:
        feature = pick(none=2, balloon=1, rainbow=1)
    if clouds == "overcast":
        feature = pick(none=1, lightning=1.4) if feature == "none" else feature
    birds = pick(none=1.4, birds=1) if weather != "rain" else "none"
    flowers = pick(none=1, flowers=1) if ground == "grass" else "none"
    path = pick(none=1, path=0.8) if water in ("none", "lake") else "none"
    return Scene(
        time, terrain, ground, water, vegetation, building, boat, birds, light, stars, clouds, weather,
        feature, flowers, path,
    )  # fmt: skip

"""Colours of an hour: the sky, and how the hour's light and haze tint everything under it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from checkpoints.recipe.drawing.canvas import Colour, mix, rgb
from checkpoints.recipe.scenes import Scene

_SKIES = {
    # time: zenith, middle, horizon, colour of the light (as a factor), haze
    "dawn": (rgb("86aed8"), rgb("e9c3d4"), rgb("ffe6c4"), (1.00, 0.93, 0.94), rgb("f0d2d2")),
    "day": (rgb("2f86d6"), rgb("7bbcf0"), rgb("d9f0fb"), (1.00, 1.00, 1.00), rgb("c6e2f2")),
    "sunset": (rgb("5a3a78"), rgb("e25f4c"), rgb("ffc45c"), (0.98, 0.76, 0.62), rgb("f0925e")),
    "dusk": (rgb("20295c"), rgb("68509a"), rgb("e08fb4"), (0.66, 0.60, 0.86), rgb("8c6aa8")),
    "night": (rgb("080f2c"), rgb("13235a"), rgb("2c4c86"), (0.44, 0.52, 0.76), rgb("2f4c80")),
}


@dataclass(frozen=True)
class Mood:
    """The sky's three colours from top to horizon, the light's colour, and the haze that distance adds."""

    sky: tuple[Colour, Colour, Colour]
    light: Colour
    haze: Colour
    dark: bool

    def shade(self, colour: Colour, distance: float = 0.0) -> Colour:
        """A thing's own colour as it looks at this hour; distance 0 is the foreground, 1 the horizon."""
        # White scatters all of the sky's light: snow keeps a cool brightness that nothing else has.
        whiteness = np.clip((colour.min() - 205) / 30, 0, 1)
        light = mix(self.light, np.array([0.86, 0.93, 1.05]), 0.5 * whiteness * (0.4 if self.dark else 1))
        return mix(colour * light, self.haze, 0.72 * distance * (1 - 0.35 * whiteness))


def mood_of(scene: Scene, rng: np.random.Generator) -> Mood:
    """The hour's colours, a little different for every seed, greyed by an overcast or by rain."""
    zenith, middle, horizon, light, haze = _SKIES[scene.time]
    cast = rng.normal(0, 5, 3)
    grey = 0.45 * (scene.clouds == "overcast") + 0.15 * (scene.weather == "rain")

    def weathered(colour: Colour) -> Colour:
        return mix(colour + cast, np.full(3, 0.92 * colour.mean()), grey)

    return Mood(
        sky=(weathered(zenith), weathered(middle), weathered(horizon)),
        light=np.array(light) * (1 - 0.25 * grey),
        haze=weathered(haze),
        dark=scene.time in ("dusk", "night"),
    )

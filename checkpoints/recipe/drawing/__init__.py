"""Draws a `Scene` as a flat illustration: `draw(scene, rng)` gives one of its endlessly many pictures."""

from checkpoints.recipe.drawing.compose import draw, draw_with_layout

__all__ = ["draw", "draw_with_layout"]

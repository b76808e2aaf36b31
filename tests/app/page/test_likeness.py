"""Likeness falls with distance; random prompts vary."""

import math

import numpy as np
from PIL import Image

from app.page.likeness import WORDS, compare
from app.page.prompts import EXAMPLES, surprise


def test_likeness_falls_with_distance() -> None:
    base = np.full((32, 32, 3), 120, np.uint8)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=base.shape)
    pictures = [
        Image.fromarray((base + scale * noise).clip(0, 255).astype(np.uint8))
        for scale in (0, 2, 8, 16, 30, 90)
    ]
    likenesses = [compare(pictures[0], picture) for picture in pictures]
    assert likenesses[0].decibels == math.inf
    decibels = [likeness.decibels for likeness in likenesses]
    assert decibels == sorted(decibels, reverse=True)
    assert len({likeness.words for likeness in likenesses}) == len(WORDS)


def test_surprises_are_sentences_and_vary() -> None:
    prompts = {surprise() for _ in range(50)}
    assert len(prompts) > 20
    assert all(prompt == " ".join(prompt.split()) for prompt in prompts | set(EXAMPLES))

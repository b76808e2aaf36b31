"""The pictures that simulated participants want, and the readers that judge whether they got them."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from checkpoints.recipe.scenes import ATTRIBUTES, sample_scene
from solver.evaluation.measures import faithfulness, load_judge

PROMPTS = Path(__file__).parents[3] / "checkpoints/landscapes/prompts/test.jsonl"
MODEL = PROMPTS.parents[1]
# Prompts that name this many attributes are used: a picture rarely has all of a longer list, and a
# single one is in nearly every picture.
NAMED = range(2, 5)
MAX_UNSAID = len(ATTRIBUTES) - NAMED[-1]

Faithful = Callable[[Path, Mapping[str, str]], float]
"""Returns the share of the wanted attributes that a picture has, from 0 to 1."""


@dataclass(frozen=True)
class Goal:
    """A prompt, and the attributes wanted in its picture: those it names, and maybe more."""

    prompt: str
    attributes: Mapping[str, str]


def read_goals(count: int, unsaid: int = 0, path: Path = PROMPTS) -> dict[str, Goal]:
    """Return the first prompts that name two to four attributes, by task id.

    Args:
        unsaid: how many attributes are wanted beyond those that the prompt names, 0 to MAX_UNSAID.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    fit = [(row["prompt"], row["attributes"]) for row in rows if len(row["attributes"]) in NAMED]
    return {
        f"prompt-{n}": Goal(prompt, named | _unsaid(prompt, named, unsaid))
        for n, (prompt, named) in enumerate(fit[:count])
    }


def _unsaid(prompt: str, named: Mapping[str, str], count: int) -> dict[str, str]:
    """Return `count` attributes that the prompt leaves open, from a scene with all that it names.

    The scene is drawn from the distribution of the model's training data, so common values are wanted more.
    """
    if not count:
        return {}
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]))
    scenes = map(asdict, iter(partial(sample_scene, rng), None))
    scene = next(scene for scene in scenes if named.items() <= scene.items())
    wanted = rng.permutation(sorted(scene.keys() - named.keys()))[:count]
    return {str(name): scene[name] for name in wanted}


def reader_of(kind: str) -> Faithful:
    """Load the embedded model's judge ("judge") or its other reader ("reward")."""
    if kind == "judge":
        reader = load_judge(MODEL)
    else:
        from checkpoints.readers import READERS

        reader = READERS[kind].from_pretrained(MODEL / "readers" / kind).float().eval()

    def faithful(path: Path, named: Mapping[str, str]) -> float:
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 127.5 - 1
        seen = reader.read(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        return float(faithfulness(seen, [named])[0])

    return faithful

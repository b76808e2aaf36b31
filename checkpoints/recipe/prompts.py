"""Write the prompts that solvers are trained and judged on: `python -m checkpoints.recipe.prompts`.

Three files of captions, none in two of them: `train.jsonl` to learn from, `validation.jsonl` to choose by,
`test.jsonl` for the figures. A line is {"prompt": words, "attributes": {attribute: value, …}} with what the
words name. For each test prompt `goals.safetensors` has one drawing of the scene that the caption was made
from: the picture that somebody who typed these words might have had in mind.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from checkpoints.recipe.captions import caption
from checkpoints.recipe.drawing import draw
from checkpoints.recipe.scenes import Scene, sample_scene

SEEDS = {"test": 4, "validation": 3, "train": 2}
"""Split -> the first entropy word of its generators; 0 and 1 are those of the drawings (`data.SPLITS`)."""
GOAL_SEED = 5
COUNTS = {"test": 384, "validation": 128, "train": 1024}
GOAL_SIZE = 32


@dataclass(frozen=True, slots=True)
class Prompt:
    """A caption.

    Attributes:
        index: its place in the endless row of captions of its split.
        scene: what it was made from; it names only a part of that.
        words: the caption.
        named: attribute -> value, for the attributes that it names.
    """

    index: int
    scene: Scene
    words: str
    named: dict[str, str]


def prompt_of(split: str, index: int) -> Prompt:
    """Caption `index` of a split, a pure function of the two."""
    rng = np.random.default_rng((SEEDS[split], index))
    scene = sample_scene(rng)
    return Prompt(index, scene, *caption(scene, rng))


def make_prompts(counts: dict[str, int]) -> dict[str, list[Prompt]]:
    """So many prompts of every split, no words twice.

    The first captions of each split; words that were met before are passed over. The test split goes first,
    so that it stays the same whatever the sizes of the others.
    """
    met: set[str] = set()
    made: dict[str, list[Prompt]] = {}
    for split in SEEDS:
        made[split], index = [], 0
        while len(made[split]) < counts[split]:
            prompt = prompt_of(split, index)
            if prompt.words not in met:
                met.add(prompt.words)
                made[split].append(prompt)
            index += 1
    return made


def goal_of(prompt: Prompt) -> np.ndarray:
    """The scene of a test prompt in a layout of its own, averaged down, (3, 32, 32) uint8."""
    drawn = draw(prompt.scene, np.random.default_rng((GOAL_SEED, prompt.index)))
    block = len(drawn) // GOAL_SIZE
    small = drawn.reshape(GOAL_SIZE, block, GOAL_SIZE, block, 3).mean(axis=(1, 3))
    return np.ascontiguousarray(small.round().astype(np.uint8).transpose(2, 0, 1))


def write(folder: Path, counts: dict[str, int]) -> None:
    """Write the four files into `folder`; the same counts always give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = make_prompts(counts)
    for split, rows in prompts.items():
        lines = [json.dumps({"prompt": p.words, "attributes": p.named}) + "\n" for p in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    goals = np.stack([goal_of(p) for p in tqdm(prompts["test"], desc="goals", unit="drawing")])
    save_file({"goals": torch.from_numpy(goals)}, folder / "goals.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=Path("checkpoints/landscapes"), help="its folder `prompts` is written"
    )
    args = parser.parse_args()
    write(args.model / "prompts", COUNTS)


if __name__ == "__main__":
    main()

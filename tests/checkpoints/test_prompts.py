"""The prompts that ship with the model: what the recipe makes, and the files as they are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import checkpoints
from checkpoints.recipe import data, prompts
from checkpoints.recipe.drawing import draw
from checkpoints.recipe.scenes import ATTRIBUTES

FOLDER = Path(checkpoints.__file__).parent / "landscapes" / "prompts"
FEW = {"test": 3, "validation": 2, "train": 4}


def rows_of(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "prompts"
    prompts.write(folder, FEW)
    return folder


def test_writing_twice_gives_the_same_files(made: Path, tmp_path: Path) -> None:
    prompts.write(tmp_path, FEW)
    names = sorted(path.name for path in made.iterdir())
    assert names == ["goals.safetensors", "test.jsonl", "train.jsonl", "validation.jsonl"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


def test_the_shipped_files_begin_as_they_are_made_today(made: Path) -> None:
    for split, count in FEW.items():
        assert rows_of(made, split) == rows_of(FOLDER, split)[:count]


def test_every_shipped_goal_shows_the_scene_that_its_prompt_has_today(made: Path) -> None:
    """The shipped goals are of an earlier composition of drawings; the colours of a scene are the same."""
    today, shipped = (
        load_file(folder / "goals.safetensors")["goals"][: FEW["test"]].float().mean((2, 3))
        for folder in (made, FOLDER)
    )
    assert torch.equal(torch.cdist(today, shipped).argmin(1), torch.arange(FEW["test"]))


def test_shipped_prompts_are_distinct_and_say_what_they_name() -> None:
    seen = []
    for split, count in prompts.COUNTS.items():
        rows = rows_of(FOLDER, split)
        assert len(rows) == count
        for row in rows:
            assert row["prompt"] and row["attributes"]
            assert all(value in ATTRIBUTES[name] for name, value in row["attributes"].items())
        seen += [row["prompt"] for row in rows]
    assert len(set(seen)) == len(seen)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000


def test_scenes_are_drawn_by_generators_that_no_drawing_has_used() -> None:
    words = [*prompts.SEEDS.values(), prompts.GOAL_SEED]
    assert len(set(words)) == len(words) and not set(words) & set(data.SPLITS.values())
    same = sum(
        prompts.prompt_of("test", i).scene == data.scene_of(split, i)[0]
        for split in data.SPLITS
        for i in range(50)
    )
    assert same == 0


def test_a_goal_is_the_scene_of_its_prompt_averaged_down(made: Path) -> None:
    goals = load_file(made / "goals.safetensors")["goals"]
    assert goals.shape == (FEW["test"], 3, 32, 32) and goals.dtype == torch.uint8
    prompt = prompts.prompt_of("test", 0)
    drawn = draw(prompt.scene, np.random.default_rng((prompts.GOAL_SEED, 0)))
    mean = drawn[40:48, 72:80].mean(axis=(0, 1)).tolist()
    assert goals[0, :, 5, 9].tolist() == pytest.approx(mean, abs=0.51)


def test_goals_at_night_are_darker_than_by_day() -> None:
    goals = load_file(FOLDER / "goals.safetensors")["goals"]
    assert goals.shape == (prompts.COUNTS["test"], 3, 32, 32) and goals.dtype == torch.uint8
    nights = [row["attributes"].get("time") == "night" for row in rows_of(FOLDER, "test")]
    days = [row["attributes"].get("time") == "day" for row in rows_of(FOLDER, "test")]
    light = goals.float().mean(dim=(1, 2, 3))
    assert light[nights].mean() < light[days].mean() - 50


def test_the_test_prompts_do_not_depend_on_how_many_others_there_are() -> None:
    few = prompts.make_prompts({"test": 40, "validation": 1, "train": 1})
    many = prompts.make_prompts({"test": 40, "validation": 30, "train": 300})
    assert few["test"] == many["test"]
    words = [p.words for rows in many.values() for p in rows]
    assert len(set(words)) == len(words) == 370

"""The commands of docs/stable-diffusion.md, run as they stand there but for sizes and the reward."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from solver import LearnedSolver, NoiseSchedule
from solver.__main__ import main
from solver.training.train import parser

pytestmark = pytest.mark.slow

DOC = Path(__file__).parents[3] / "docs" / "stable-diffusion.md"


def commands(folder: Path) -> dict[str, list[list[str]]]:
    """The arguments of each `python -m solver NAME` in the page, with its paths below `folder`."""
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"```bash\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[:3] == ["python", "-m", "solver"]:
                here = [re.sub(r"^(\w+=)?(build|prompts)\b", rf"\1{folder}/\2", word) for word in words[4:]]
                found.setdefault(words[3], []).append(here)
    return found


def test_the_recipe_runs(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "train.txt").write_text("a lake\nsnowy mountains\n")
    (tmp_path / "prompts" / "validation.jsonl").write_text(json.dumps({"prompt": "the sea"}) + "\n")

    def run(command: str, arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["consistency-solver", command, *arguments])
        assert main() == 0

    def smaller(arguments: list[str], **options: str) -> list[str]:
        words = [str(tiny_folder) if word == "$MODEL" else word for word in arguments]
        for option, value in options.items():
            words[words.index(f"--{option.replace('_', '-')}") + 1] = value
        return words

    found = commands(tmp_path)
    for pairs in found["pairs"]:
        run("pairs", [*smaller(pairs, count="2", steps="2"), "--cpu"])
    (train,) = found["train"]
    sizes = {"iterations": "1", "group": "5", "rollouts_at_once": "3", "reward": "psnr"}
    run("train", [*smaller(train, **sizes), "--device", "cpu"])
    learned = LearnedSolver.load(tmp_path / "build" / "sd15" / "solver")
    schedule = NoiseSchedule.from_config(
        json.loads((tiny_folder / "scheduler/scheduler_config.json").read_text())
    )
    assert learned.policy and learned.policy.sees == "paper" and learned.policy.steps == (2, 15)
    assert learned.plan(5, schedule).sigma[-1] == pytest.approx(float(schedule.sigma(0)))


def test_the_recipe_is_the_papers_setting(tmp_path: Path) -> None:
    (train,) = commands(tmp_path)["train"]
    options = parser().parse_args(train)
    assert (options.order, options.bins, options.hidden, options.sees) == (4, 11, 256, "paper")
    assert (options.iterations, options.group, options.batch, options.reward) == (3000, 80, 1, "depth")
    assert options.steps == list(range(2, 16)) and options.learning_rate == 1e-4
    targets = commands(tmp_path)["pairs"]
    assert all(words[words.index("--steps") + 1] == "40" for words in targets)

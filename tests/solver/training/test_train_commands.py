"""From pairs to a solver that pipelines load, by the commands and on the embedded model."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from solver import ConsistencySolverScheduler, LearnedSolver, make_plan
from solver.diffusion import LatentDiffusion, load_diffusion
from solver.evaluation import ablate, page
from solver.evaluation.evaluate import TRAINING_FREE
from solver.training import train
from solver.training.pairs import Prompt, Target, make_pairs

pytestmark = pytest.mark.slow

LANDSCAPES = "checkpoints/landscapes"


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return load_diffusion(LANDSCAPES)


@pytest.fixture(scope="module")
def pairs(model: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folders = []
    for name, seed in (("--pairs", 0), ("--validation", 100)):
        folder = tmp_path_factory.mktemp(name.strip("-"))
        prompts = [Prompt("a lake at dusk"), Prompt("a desert at noon")]
        make_pairs(model, prompts, folder, count=2, first_seed=seed, target=Target(steps=4))
        folders += [name, str(folder)]
    return folders


def command(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    module.main()


SMALL = ("--steps", "2", "--iterations", "2", "--validate-every", "1", "--batch", "2", "--hidden", "8")


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "distill", "--reward", "psnr + 0.1*reader", "--free"),
        ("--method", "ppo", "--reward", "labels", "--group", "3", "--bins", "5", "--learns", "rows", "grid"),
        ("--method", "fit"),
    ],
    ids=["distill", "ppo", "fit"],
)
def test_training_leaves_a_scheduler(
    options: Any,
    pairs: Any,
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(train, monkeypatch, *pairs, "--out", str(tmp_path), *SMALL, *options, "--json")
    assert json.loads(capsys.readouterr().out)["out"] == str(tmp_path)
    assert "validation pairs rose from" in page.how_trained(tmp_path)
    scheduler = ConsistencySolverScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(2)
    learned = LearnedSolver.load(tmp_path)
    assert scheduler.plan == make_plan("consistency", 2, model.schedule, learned=learned)
    assert scheduler.policy is not None and scheduler.policy.covers(2) and not scheduler.policy.covers(3)


def test_training_goes_on_from_a_policy(
    pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    command(train, monkeypatch, *pairs, "--out", str(first), *SMALL, "--method", "distill")
    arguments = ("--out", str(second), *SMALL, "--iterations", "1", "--init", str(first))
    command(train, monkeypatch, *pairs, *arguments, "--method", "ppo", "--group", "2")
    assert LearnedSolver.load(second).policy.settings == LearnedSolver.load(first).policy.settings  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--reward", "labels", "--method", "distill"), "labels has no gradient; train with --method ppo"),
        (("--reward", "beauty"), "beauty"),
        (("--order", "33"), "order of a policy is 1 to 32"),
        (("--sees", "paper"), "The paper's policy starts as euler and learns only the rows"),
        (("--sees", "paper", "--start", "euler", "--learns", "rows", "--order", "1"), "has order 2 or more"),
        (
            ("--method", "fit", "--init", "checkpoints/landscapes/solver"),
            "the policy in checkpoints/landscapes",
        ),
        (("--pairs", "nowhere"), "There are no pairs in nowhere"),
        (("--model", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_trained_is_answered_with_a_message(
    options: Any,
    message: str,
    pairs: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        command(train, monkeypatch, *pairs, "--out", str(tmp_path), *SMALL, *options)
    assert message in capsys.readouterr().err


def test_variants_are_distinct_and_their_options_known() -> None:
    assert len({ablate.folder_of(name) for name in ablate.VARIANTS}) == len(ablate.VARIANTS)
    for options in ablate.VARIANTS.values():
        train.parser().parse_args(["--pairs", "x", "--validation", "y", "--out", "z", *shlex.split(options)])


def test_ablation_compares_what_it_trained(
    pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_file = tmp_path / "rows.json"
    monkeypatch.setattr("solver.evaluation.evaluate.best_grid", lambda *_: "trailing")
    monkeypatch.setattr(
        "solver.evaluation.evaluate.make_pairs",
        lambda *a, **k: make_pairs(*a, **k | {"count": 8, "target": Target(steps=3)}),
    )
    arguments = (*pairs, "--work", str(tmp_path), "--evaluated", str(tmp_path / "evaluated"))
    arguments += ("--only", "grid alone", "--steps", "2", "--iterations", "1", "--batch", "2")
    command(ablate, monkeypatch, *arguments, "--test-pairs", "8", "--json", str(rows_file))
    rows = json.loads(rows_file.read_text())
    assert {row["solver"] for row in rows} == {*TRAINING_FREE, "grid alone"}
    assert (tmp_path / Path(ablate.folder_of("grid alone")) / "policy.safetensors").exists()

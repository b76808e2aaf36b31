"""Pairs, an iteration of training and a comparison, by the commands, on a model of every family."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from solver import LearnedSolver, make_plan
from solver.diffusion import load_diffusion
from solver.evaluation import evaluate
from solver.training import pairs, train
from solver.training.pairs import Prompt, load_pairs, make_pairs, read_prompts
from tests import tiny_models

pytestmark = pytest.mark.slow

STEPS = 2
PPO = (
    "--method",
    "ppo",
    "--group",
    "2",
    "--start",
    "euler",
    "--sees",
    "paper",
    "--learns",
    "rows",
    "--bins",
    "5",
)


def command(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


@pytest.fixture(scope="module", params=tiny_models.KINDS)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "train.txt").write_text("a lake at dusk\na desert\n")
    for name in ("validation", "test"):
        (folder / f"{name}.jsonl").write_text('{"prompt": "a boat"}\n{"prompt": "hills"}\n')
    return folder


def with_images(prompts: Path) -> None:
    """Every prompt becomes an instruction for a picture of its own."""
    asked = [Prompt(line) for line in (prompts / "train.txt").read_text().splitlines()]
    for name in ("train", "validation", "test"):
        if name != "train":
            asked = read_prompts(prompts / f"{name}.jsonl")
        lines = []
        for i, prompt in enumerate(asked):
            Image.effect_noise((30 + i, 20), 200).convert("RGB").save(prompts / f"{name}{i}.png")
            lines.append(json.dumps({"prompt": prompt.prompt, "image": f"{name}{i}.png"}) + "\n")
        (prompts / f"{name}.jsonl").write_text("".join(lines))


def test_from_pairs_to_a_comparison(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("solver.diffusion.flux.NATIVE", 8)
    loaded = load_diffusion(model)
    if loaded.edits:
        with_images(prompts)
    guidance = ("--guidance", "3.5")
    for name, seed in (("train", 0), ("validation", 100)):
        file = prompts / ("train.txt" if name == "train" and not loaded.edits else f"{name}.jsonl")
        options = ("--count", "2", "--steps", "4", "--first-seed", seed, "--cpu")
        out = tmp_path / name
        command(pairs, monkeypatch, "--model", model, "--prompts", file, "--out", out, *options, *guidance)
    made = load_pairs(tmp_path / "train")
    assert len(made) == 2 and made.latents.isfinite().all() and made.model == loaded.fingerprint
    assert (made.reference is not None) == loaded.edits

    solvers = {}
    for method, by in (("distill", ("--method", "distill")), ("ppo", PPO)):
        solvers[method] = tmp_path / method
        sets = ("--pairs", tmp_path / "train", "--validation", tmp_path / "validation")
        small = ("--steps", STEPS, "--iterations", "1", "--batch", "2", "--hidden", "8", "--device", "cpu")
        command(train, monkeypatch, "--model", model, *sets, *small, *by, "--json", "--out", solvers[method])
        result = json.loads(capsys.readouterr().out)
        assert result["reward"] >= result["validation_before"] > 0
        learned = LearnedSolver.load(solvers[method])
        plan = make_plan("consistency", STEPS, loaded.schedule, learned=learned, guidance=3.5)
        assert plan.nfe == STEPS and not learned.mismatch(loaded.schedule, 3.5)

    monkeypatch.setattr(evaluate, "TRAINING_FREE", ("ddim", "dpm++2m", "deis"))
    monkeypatch.setattr(evaluate, "CANDIDATE_GRIDS", ("trailing", "logsnr"))
    monkeypatch.setattr(evaluate, "FINER_STEPS", 6)
    monkeypatch.setattr(
        evaluate, "make_pairs", lambda *a, **o: make_pairs(*a, **o | {"target": pairs.Target(steps=4)})
    )
    few = ("--pairs", "8", "--finer-pairs", "2", "--validation-pairs", "2", "--nfe", STEPS, "--device", "cpu")
    trained = [f"{name}={folder}" for name, folder in solvers.items()]
    rows_file = tmp_path / "rows.json"
    files = ("--prompts", prompts, "--work", tmp_path / "work", "--json", rows_file)
    command(evaluate, monkeypatch, "--model", model, *few, *files, *guidance, "--learned", *trained)
    rows = json.loads(rows_file.read_text())
    known = {"ddim", "dpm++2m"} | (set() if loaded.schedule.is_flow else {"deis"})
    learned_grids = {"distill, dpm++2m rows"}  # PPO learned rows alone
    assert {row["solver"] for row in rows} == {"distill", "ppo"} | learned_grids | known
    assert all(row["psnr_db"] > 0 for row in rows)


def test_what_cannot_be_compared_is_said_before_anything_is_made(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("solver.diffusion.flux.NATIVE", 8)
    model = tiny_models.build("flux", tmp_path / "flux")
    monkeypatch.setattr(evaluate, "make_pairs", lambda *_, **__: pytest.fail("pairs were made"))
    for options, words in (
        (("--solvers", "deis"), "a flow does not know"),
        (("--solvers", "consistency"), "solver"),
        (("--learned", f"mine={tmp_path / 'nowhere'}"), "nowhere"),
    ):
        with pytest.raises(SystemExit):
            command(evaluate, monkeypatch, "--model", model, "--prompts", prompts, *options)
        assert words in capsys.readouterr().err

"""One command learns a solver: it says how long it takes, resumes, and loses nothing that is there."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from solver import LearnedSolver
from solver.evaluation import learn
from solver.evaluation.learn import SIZES, Size, choose_size, evaluations, install, minutes_for, split_prompts
from solver.training import fit, pairs
from solver.training.pairs import Prompt

TINY = Size(training=4, validation=2, test=8)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"picture {i}") for i in range(count)]


def test_the_built_in_prompts_differ() -> None:
    texts = list(learn.built_in_prompts())
    assert len(set(texts)) == len(texts) > 1000


@pytest.mark.parametrize("size", SIZES)
def test_no_prompt_is_both_learned_from_and_measured_on(size: Size) -> None:
    parts = split_prompts(prompts(400), size)
    texts = [prompt.prompt for part in parts.values() for prompt in part]
    assert len(set(texts)) == len(texts) == 400 and all(parts.values())
    assert len(parts["test"]) * 4 >= size.test


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="Give at least 6 different prompts, not 3"):
        split_prompts(prompts(3), TINY)


def test_the_size_fits_into_the_time() -> None:
    """Longer time means more pairs, never more time than given; and the least time is said."""
    counts, speed, chosen = [4, 5, 6, 8], 0.02, []
    for minutes in (5, 20, 40, 1000):
        try:
            size = choose_size(counts, speed, minutes)
        except ValueError as error:
            least = int(str(error).split("about ")[1].split()[0])
            assert least > minutes and choose_size(counts, speed, least) == SIZES[0]
        else:
            assert minutes_for(size, counts, speed) <= minutes
            chosen.append(size.training)
    assert chosen == sorted(chosen) and chosen[-1] == SIZES[-1].training


def test_the_plan_is_told_by_parts() -> None:
    text = learn.plan_text("mine", TINY, [4], 0.1)
    assert "Learning a solver for mine" in text and all(part in text for part in evaluations(TINY, [4]))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything at its least, so that the command ends in seconds."""
    monkeypatch.setattr(learn, "SIZES", (TINY,))
    for module in (learn, pairs):
        monkeypatch.setattr(module, "REFINEMENT", pairs.Target(steps=4))
    monkeypatch.setattr("solver.evaluation.evaluate.FINER_STEPS", 6)
    monkeypatch.setattr("solver.evaluation.evaluate.CANDIDATE_GRIDS", ("trailing", "logsnr"))
    stages = (fit.Stage("grid", ("grid",), 1, 2), fit.Stage("rows", ("rows", "state"), 1, 2))
    monkeypatch.setattr(fit, "STAGES", stages)
    monkeypatch.setattr(fit.fit, "__kwdefaults__", {**(fit.fit.__kwdefaults__ or {}), "stages": stages})


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["consistency-solver learn", "--device", "cpu", *arguments])
    learn.main()


@pytest.mark.slow
def test_one_command_learns_resumes_and_installs(
    small: None,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_folder, model)
    shutil.rmtree(model / "prompts", ignore_errors=True)
    (model / "solver").mkdir(exist_ok=True)
    (model / "solver" / "old.txt").write_text("an older solver")
    arguments = ("--model", str(model), "--out", str(out), "--steps", "2")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(learn.train, "run", interrupted)
        with pytest.raises(SystemExit, match="The same command continues"):
            run(patch, *arguments, "--no-install")
    assert "minutes in all" in capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in (out / "pairs").rglob("*.safetensors")}
    assert made

    run(monkeypatch, *arguments, "--install")
    assert {path: path.stat().st_mtime_ns for path in made} == made
    told = capsys.readouterr().out
    assert "2 evaluations:" in told and f"{model}/solver" in told
    learned = LearnedSolver.load(model / "solver")
    assert learned.covers(2) and not learned.covers(3)
    for name in ("README.md", "quality.png", "previews.png", "tables.png"):
        assert (model / "solver" / name).stat().st_size > 500
    card = (model / "solver" / "README.md").read_text(encoding="utf-8")
    assert "ConsistencySolver for model" in card and "What its rows add to dpm++2m rows" in card
    assert "by least squares on the final latents" in card and f"learn --model {model}" in card
    assert (model / "solver.before-1" / "old.txt").exists(), "what was there is kept"

    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments, "--guidance", "9", "--no-install")
    assert "has a run with other options" in capsys.readouterr().err


def test_installing_keeps_every_solver_before(tmp_path: Path) -> None:
    source, model = tmp_path / "learned", tmp_path / "model"
    for folder in (source, model):
        folder.mkdir()
    for n in range(3):
        (source / "scheduler_config.json").write_text(str(n))
        (source / "state.pt").write_text("left behind")
        install(source, model)
    read = lambda name: (model / name / "scheduler_config.json").read_text()  # noqa: E731
    assert [read(name) for name in ("solver", "solver.before-1", "solver.before-2")] == ["2", "0", "1"]
    assert not (model / "solver" / "state.pt").exists() and not (model / "solver.new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--model", "nowhere"), "nowhere"), (("--minutes", "0"), "The least takes about")],
)
def test_what_cannot_be_done_is_said(
    options: tuple[str, ...],
    message: str,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--model", str(tiny_folder), "--out", str(tmp_path), *options)
    assert message in capsys.readouterr().err

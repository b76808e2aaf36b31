"""The paper's experiments run whole on tiny models, resume, and answer from what was measured."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from solver import LearnedSolver, NoiseSchedule, make_plan, read_plan, sample
from solver.evaluation import evaluate, reproduce
from solver.evaluation.reproduce import BINS, EXPERIMENTS, METHODS, PAPER, PAPER_COLUMNS
from solver.paper import PaperFlowPolicy, PaperPolicy
from solver.training import train
from tests import tiny_models
from tests.solver.toys import NOISE, SD, diffusers_scheduler, network, relative_error
from tests.solver.training.tiny_rewards import TINY
from tools import figures

S = NoiseSchedule.from_config(SD)
SMALL = ("--train-pairs", "2", "--pairs", "8", "--validation-pairs", "1", "--iterations", "2", "--group", "4")


@pytest.mark.parametrize("steps", [5, 8, 12, 40])
def test_targets_are_those_of_the_authors_scheduler(steps: int) -> None:
    options = {
        "algorithm_type": "dpmsolver",
        "final_sigmas_type": "sigma_min",
        "timestep_spacing": "linspace",
    }
    theirs = read_plan(diffusers_scheduler("DPMSolverMultistepScheduler", **{**SD, **options}), steps)
    ours = dataclasses.replace(EXPERIMENTS["sd15"].target, steps=steps).plan(S)
    assert ours.sigma[-1] == pytest.approx(float(S.sigma(0)))
    assert relative_error(sample(ours, network, NOISE), sample(theirs, network, NOISE)) < 1e-5


@pytest.mark.parametrize("grid", evaluate.CANDIDATE_GRIDS)
@pytest.mark.parametrize("solver", EXPERIMENTS["sd15"].solvers)
def test_every_solver_can_end_where_the_targets_do(solver: str, grid: str) -> None:
    for N in (2, 5, 12):
        plan = make_plan(solver, N, S, grid=grid, to_zero=False)
        evaluate.check_fair(plan, N, EXPERIMENTS["sd15"].target.plan(S))
        assert plan.sigma[-1] == pytest.approx(float(S.sigma(0)))
        assert all(a > b for a, b in zip(plan.sigma, plan.sigma[1:], strict=False)), "no evaluation is wasted"


def options_of(method: str, name: str = "sd15") -> Any:
    experiment = EXPERIMENTS[name]
    args = reproduce.parser().parse_args([name, "--out", "x", "--prompts", "."])
    words = reproduce.training_options(method, experiment, reproduce.complete(args))
    return train.parser().parse_args([*words, "--pairs", "a", "--validation", "b", "--out", "c"])


def test_ppo_has_the_settings_of_the_authors_code() -> None:
    options = options_of("ppo")
    assert (options.order, options.bins, options.hidden, options.sees, options.start) == (
        4,
        11,
        256,
        "paper",
        "euler",
    )
    assert (options.iterations, options.group, options.batch, options.reward) == (3000, 80, 1, "depth")
    assert (options.epochs, options.learning_rate, options.steps) == (1, 1e-4, list(range(2, 16)))
    kontext = options_of("ppo", "kontext")
    assert (kontext.order, kontext.reward, kontext.learning_rate, kontext.epochs) == (2, "dino", 1e-3, 4)


def test_the_loss_is_the_authors_divided_by_ten() -> None:
    """10 · mean(A · ratio) + 0.01 · mean over decisions of H / log K, on steps with all decisions."""
    H, A, decisions = torch.rand(5, 3), torch.randn(5), 3
    theirs = 10 * A.mean() + 0.01 * (H / math.log(BINS)).mean()
    options = options_of("ppo")
    ours = A.mean() + options.entropy * H.sum(dim=1).mean()
    torch.testing.assert_close(10 * ours, theirs)
    assert options.gradient_norm == 1.0 / 10 and options.order - 1 == decisions


def test_the_twins_take_about_as_many_evaluations() -> None:
    ppo, regression = options_of("ppo"), options_of("regression")
    rollouts = ppo.batch * ppo.group
    assert reproduce.GRADIENT_COST * regression.batch == pytest.approx(rollouts, rel=0.05)
    assert (regression.bins, regression.method, regression.reward) == (0, "distill", ppo.reward)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, arguments)])
    monkeypatch.setattr(evaluate, "CANDIDATE_GRIDS", ("trailing", "linspace"))
    reproduce.main()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "train.txt").write_text("a lake\nsnowy mountains\n")
    for name in ("validation", "test"):
        (folder / f"{name}.jsonl").write_text('{"prompt": "the sea"}\n{"prompt": "hills"}\n')
    return folder


def test_the_experiment_runs_and_resumes_on_a_tiny_model(
    tiny_folder: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    arguments: tuple[object, ...] = (
        "landscapes",
        "--model",
        tiny_folder,
        "--prompts",
        prompts,
        "--out",
        out,
        *SMALL,
    )
    arguments += ("--steps", "2", "3", "--nfe", "2", "3", "--device", "cpu", "--json")
    run(monkeypatch, *arguments)
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((out / "results.json").read_text())
    solvers = {(row["solver"], row["nfe"]) for row in results["rows"][:-1]}
    assert solvers == {(s, N) for s in (*METHODS, *EXPERIMENTS["landscapes"].solvers) for N in (2, 3)}
    assert results["sizes"]["iterations"] == 2 and results["sizes"]["papers"]["iterations"] == 3000
    assert {type(LearnedSolver.load(out / m).policy) for m in METHODS} == {PaperPolicy}
    assert "PPO minus regression" in (out / "table.md").read_text()

    monkeypatch.setattr(evaluate.Bench, "run", lambda *_: pytest.fail("what is there is not made again"))
    run(monkeypatch, *arguments)
    again = json.loads(capsys.readouterr().out)
    assert again["rows"] == results["rows"]


def test_the_editing_experiment_runs_on_a_tiny_model(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("solver.diffusion.flux.NATIVE", 16)
    model = tiny_models.build("flux_kontext", tmp_path / "kontext")
    dino = TINY["dino"](tmp_path / "dino")
    for name in ("train", "validation", "test"):
        lines = []
        for i in range(2):
            Image.effect_noise((30 + i, 20), 200).convert("RGB").save(prompts / f"{name}{i}.png")
            lines.append(json.dumps({"prompt": f"make it {i}", "image": f"{name}{i}.png"}) + "\n")
        (prompts / f"{name}.jsonl").write_text("".join(lines))
    reward = f"dino:{dino}"
    arguments: tuple[object, ...] = ("kontext", "--model", model, "--prompts", prompts, *SMALL, "--json")
    arguments += ("--out", tmp_path / "out", "--nfe", "3", "4", "5", "--device", "cpu")
    arguments += ("--reward", reward, "--rewards", reward)
    run(monkeypatch, *arguments)
    results = json.loads(capsys.readouterr().out)
    assert {row["nfe"] for row in results["rows"][:-1]} == {3, 4, 5}
    assert all(-1 <= row[f"reward:{reward}"] < 1.001 for row in results["rows"])
    assert {type(LearnedSolver.load(tmp_path / "out" / m).policy) for m in METHODS} == {PaperFlowPolicy}


def test_the_answer_follows_from_the_intervals() -> None:
    def results(*intervals: tuple[float, float]) -> dict[str, Any]:
        rows = {str(N): {"psnr_db": 0.0, "psnr_db_ci": i} for N, i in enumerate(intervals, start=5)}
        return {"ppo_minus_regression": rows}

    assert reproduce.answer(results((0.1, 1), (0.2, 2))).startswith("PPO beats regression here")
    assert reproduce.answer(results((-1, -0.1))).startswith("Regression beats PPO here, unlike")
    assert reproduce.answer(results((-1, 0.1))).startswith("PPO and regression cannot be told apart")
    assert reproduce.answer(results((0.1, 1), (-1, 1))).startswith("PPO and regression differ")


def test_a_run_too_small_to_judge_by_says_so_first() -> None:
    papers = {"iterations": 3000, "rollouts_in_an_iteration": 80}
    sizes = papers | {"test_pairs": 320, "papers": papers}
    assert reproduce.caution(sizes) == ""
    for smaller in ({"iterations": 30}, {"test_pairs": 16}):
        assert "too small to judge the method" in reproduce.caution(sizes | smaller)
    assert figures.read("paper")["sizes"]["iterations"] < 3000, "the run among the figures is a small one"
    assert "too small to judge the method" in figures.render().split("## The paper's experiment")[1]


def test_the_page_gives_the_papers_own_answer() -> None:
    psnr = PAPER_COLUMNS.index("PSNR")
    gains = [PAPER["ppo", N][psnr] - PAPER["regression", N][psnr] for N in (5, 8)]
    page = (Path(__file__).parents[3] / "docs" / "stable-diffusion.md").read_text(encoding="utf-8")
    assert "| {:+.1f} / {:+.1f} dB |".format(*gains) in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("sd15", "--model", "nowhere"), "There is no folder nowhere/prompts"),
        (("landscapes", "--nfe", "20"), r"--nfe [20] are not within the --steps"),
    ],
)
def test_what_cannot_be_run_is_said_at_once(
    options: Any,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *options, "--out", tmp_path)
    assert message in capsys.readouterr().err

"""`consistency-solver export`: what it writes is followed by the parts for other programs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from integrations import export
from integrations.diffusers.scheduling_consistency_solver import ConsistencySolverScheduler
from integrations.k_diffusion import get_sigmas, read_plans, sample_consistency
from solver import ConsistencySolverScheduler as Scheduler
from solver import LearnedSolver, NoiseSchedule, Policy, sample
from solver.grids import time_grid
from solver.paper import PaperPolicy
from tests.integrations.comfy_stand_in import Model, Sampling
from tests.integrations.test_diffusers import learned_plan
from tests.solver.toys import NOISE, SD, network, relative_error, run_scheduler

ROOT = Path(__file__).parents[2]


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    """A model's folder with a learned solver in it: a table for 6 steps, and a policy for 3 to 5."""
    scheduler = Scheduler(
        **{k: v for k, v in SD.items() if k != "timestep_spacing"}, tables=[learned_plan(SD, 6).to_dict()]
    )
    scheduler.policy = Policy(order=3, hidden=8, steps=(3, 5))
    scheduler.save_pretrained(tmp_path / "model" / "solver")
    return tmp_path / "model"


def run(*arguments: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    return export.main()


def test_json_has_every_learned_plan(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "plans.json"
    assert run("--to", "json", out, "--learned", learned, monkeypatch=monkeypatch) == 0
    assert "with plans for 3, 4, 5, 6 steps of model" in capsys.readouterr().out
    file = read_plans(out)
    assert file.name == "model" and file.about == "Learned at guidance scale 3."
    solver = LearnedSolver.load(learned / "solver")
    assert solver.schedule is not None
    for plan in file.plans:
        made = solver.plan(len(plan.a), solver.schedule)
        assert (plan.a, plan.c, plan.d) == (made.a, made.c, made.d)
        assert plan.told == tuple(zip(made.told_alpha, made.told_sigma, strict=True))


@pytest.mark.parametrize("program", ["comfyui", "forge"])
def test_folders_are_the_program_s_part_with_one_s_own_plans(
    program: str, learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ("--to", program, out, "--learned", learned / "solver")
    assert run(*arguments, "--name", "My Model 2", monkeypatch=monkeypatch) == 0
    source = ROOT / "integrations" / program
    files = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    written = {p.relative_to(out) for p in out.rglob("*") if p.is_file()}
    assert written == files | {Path("plans/my-model-2.json")}
    assert read_plans(out / "plans" / "my-model-2.json").name == "My Model 2"
    # Again, with another model: the plans that are there stay.
    assert run(*arguments, "--name", "other", "--steps", 6, monkeypatch=monkeypatch) == 0
    assert {p.name for p in (out / "plans").glob("m*.json")} == {"my-model-2.json"}
    assert [len(plan.a) for plan in read_plans(out / "plans" / "other.json").plans] == [6]


def test_a_diffusers_folder_loads(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert run("--to", "diffusers", out, "--learned", learned, monkeypatch=monkeypatch) == 0
    ours = Scheduler.from_pretrained(learned / "solver")
    theirs = ConsistencySolverScheduler.from_pretrained(out)
    for steps in (4, 6, 11):
        one, other = (run_scheduler(each, NOISE, num_inference_steps=steps) for each in (ours, theirs))
        assert torch.allclose(one, other, atol=1e-5)
    assert (out / "scheduling_consistency_solver.py").is_file()


def test_the_published_policy_reaches_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `consistency-solver convert` leaves it: for any number of steps, ending above σ = 0."""
    policy = PaperPolicy()
    for parameter in policy.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    config = {key: value for key, value in SD.items() if key != "timestep_spacing"}
    scheduler = Scheduler(**config)
    scheduler.policy = policy
    scheduler.save_pretrained(tmp_path / "solver")
    learned = ("--learned", tmp_path / "solver", "--steps", 5, 8)
    assert run("--to", "json", tmp_path / "plans.json", *learned, monkeypatch=monkeypatch) == 0
    assert run("--to", "diffusers", tmp_path / "out", *learned, monkeypatch=monkeypatch) == 0
    plans = read_plans(tmp_path / "plans.json").plans
    theirs = ConsistencySolverScheduler.from_pretrained(tmp_path / "out")
    schedule = NoiseSchedule.from_config(SD)
    model = Model(network, Sampling(schedule, rounded=False))
    for steps in (5, 8):
        plan = policy.plan(schedule, time_grid("trailing", schedule, steps), 3.0)
        assert plan.sigma[-1] > 0.02
        expected = sample(plan, network, NOISE)
        sigmas = get_sigmas(steps, model.sampling.sigmas, plans=plans)
        x = NOISE * (1 + float(sigmas[0]) ** 2) ** 0.5
        result = sample_consistency(model.denoised, x, sigmas, disable=True, plans=plans)
        assert relative_error(result * plan.alpha[-1], expected) < 1e-5
        result = run_scheduler(theirs, NOISE, num_inference_steps=steps)
        assert relative_error(result, expected) < 1e-5


def test_what_can_t_be_exported_is_said(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    cases = {
        ("--to", "json", tmp_path / "x.json"): "Give --learned",
        ("--to", "json", tmp_path / "x.json", "--learned", tmp_path): "No such file",
        (
            "--to",
            "json",
            tmp_path / "x.json",
            "--learned",
            learned,
            "--steps",
            6,
            9,
        ): "Nothing was learned for 9",
        ("--to", "comfyui", tmp_path / "full"): "holds something else",
        ("--to", "diffusers", learned / "solver", "--learned", learned): "holds a scheduler already",
    }
    for arguments, message in cases.items():
        assert run(*arguments, monkeypatch=monkeypatch) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_the_command_is_one_of_the_solver_s(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "solver", "export", "--to", "comfyui", str(tmp_path / "nodes")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "nodes" / "plans" / "landscapes.json").read_text())["name"] == "Landscapes"

"""Students start as their teacher, learn, and are compared at equal network calls."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from solver import make_plan, sample
from solver.diffusion import LatentDiffusion, load_diffusion
from solver.evaluation import evaluate, rivals
from solver.training import students
from solver.training.pairs import Pairs, Prompt, Target, load_pairs, make_pairs
from solver.training.students import STUDENTS, TEACHER_STEPS, jump, new_student, phase_end


@pytest.fixture(scope="module")
def teacher(tiny_folder: Path) -> LatentDiffusion:
    return load_diffusion(tiny_folder)


@pytest.fixture(scope="module")
def folder(teacher: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs")
    prompts = [Prompt("a lake"), Prompt("snowy mountains")]
    make_pairs(teacher, prompts, out, count=2, target=Target(steps=5))
    return out


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Pairs:
    return load_pairs(folder)


def levels(model: LatentDiffusion, index: int) -> tuple[float, float]:
    alpha, sigma = model.schedule.levels(students.teacher_grid(model).lam)
    return float(alpha[index]), float(sigma[index])


@pytest.mark.parametrize("phases", [1, 4, 8])
def test_phases_end_where_the_students_steps_do(phases: int, teacher: LatentDiffusion) -> None:
    i = torch.arange(TEACHER_STEPS)
    ends = phase_end(i, phases)
    assert bool((ends > i).all()) and ends[-1] == TEACHER_STEPS
    assert len(ends.unique()) == phases
    plan = new_student("pcm", teacher, phases).plan
    reached = [0, *ends.unique().tolist()]
    assert plan.sigma == pytest.approx([levels(teacher, index)[1] for index in reached], abs=1e-6)


def test_a_jump_is_exact_and_one_to_itself_changes_nothing(teacher: LatentDiffusion) -> None:
    x0, noise = torch.randn(2, 3, 4, 4, 4).unbind()
    starts, ends = torch.tensor([0, 13, 39]), torch.tensor([10, 20, 40])
    a, s = (
        torch.tensor(v).view(-1, 1, 1, 1)
        for v in zip(*(levels(teacher, int(i)) for i in starts), strict=True)
    )
    b, r = (
        torch.tensor(v).view(-1, 1, 1, 1) for v in zip(*(levels(teacher, int(i)) for i in ends), strict=True)
    )
    x = a * x0 + s * noise
    assert torch.equal(jump(teacher, x, noise, starts, starts), x)
    torch.testing.assert_close(
        jump(teacher, x, noise, starts, ends), b * x0 + r * noise, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(("kind", "solver"), [("endtoend", "dpm++2m"), ("pcm", "ddim")])
def test_a_student_with_its_teachers_weights_is_the_teacher_without_guidance(
    kind: str, solver: str, teacher: LatentDiffusion, pairs: Pairs
) -> None:
    student = new_student(kind, teacher, 4)
    plan = student.plan if kind == "pcm" else make_plan(solver, 4, teacher.schedule)
    assert plan.solver == solver
    with torch.no_grad():
        denoise = teacher.denoiser([p.prompt for p in pairs.prompts], torch.ones(2))
        torch.testing.assert_close(student.sample(pairs), sample(plan, denoise, teacher.noise(pairs.seeds)))


def test_a_phase_of_one_step_has_nothing_to_learn_without_guidance(
    teacher: LatentDiffusion, pairs: Pairs
) -> None:
    """The student's jump to the next level is then the teacher's own step; with guidance it is not."""
    student = new_student("pcm", teacher, TEACHER_STEPS)
    unguided = dataclasses.replace(pairs, guidance=torch.ones(2))
    losses = [students.pcm_loss(student, teacher, some).item() for some in (unguided, pairs)]
    assert losses[0] < 1e-10 and losses[1] > 100 * losses[0]


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_student_makes_one_call_a_step(kind: str, teacher: LatentDiffusion, pairs: Pairs) -> None:
    student, rows = new_student(kind, teacher, 4), list[int]()
    hook = student.model.network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    with torch.no_grad():
        first = student.sample(pairs)
    hook.remove()
    assert rows == [len(pairs)] * 4
    with torch.no_grad():
        assert torch.equal(student.sample(pairs), first), "a seed is a picture"
        torch.testing.assert_close(student.sample(pairs.take([1]))[0], first[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", STUDENTS)
def test_the_loss_falls(kind: str, teacher: LatentDiffusion, pairs: Pairs, tmp_path: Path) -> None:
    student = new_student(kind, teacher, 2)

    def loss() -> float:
        torch.manual_seed(5)
        with torch.no_grad():
            return sum(float(STUDENTS[kind](student, teacher, pairs)) for _ in range(8))

    before = loss()
    options: dict[str, Any] = {"batch": 2, "learning_rate": 1e-3, "validate_every": 30}
    students.train_student(student, teacher, pairs, pairs, tmp_path, iterations=30, **options)
    assert loss() < 0.9 * before
    assert all(torch.equal(a, b) for a, b in zip(
        load_diffusion(teacher.settings["_name_or_path"]).network.parameters(),
        teacher.network.parameters(), strict=True,
    )), "the teacher stays as it is"  # fmt: skip


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def test_the_commands_train_resume_and_compare_at_equal_calls(
    tiny_folder: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "student"
    arguments: tuple[object, ...] = ("pcm", "--model", tiny_folder, "--pairs", folder, "--validation", folder)
    arguments += ("--out", out, "--batch", "2", "--validate-every", "1", "--device", "cpu", "--json")
    run(students, monkeypatch, *arguments, "--iterations", "1")
    run(students, monkeypatch, *arguments, "--iterations", "3")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["iterations"], len(result["losses"]), result["calls"]) == (3, 3, 4)

    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name in ("validation", "test"):
        (prompts / f"{name}.jsonl").write_text('{"prompt": "the sea"}\n{"prompt": "hills"}\n')
    monkeypatch.setattr(evaluate, "CANDIDATE_GRIDS", ("trailing", "linspace"))
    monkeypatch.setattr(evaluate, "FINER_STEPS", 6)
    few: tuple[object, ...] = ("--pairs", "8", "--validation-pairs", "1", "--solvers", "unipc")
    few += ("--work", tmp_path / "work", "--prompts", prompts, "--device", "cpu", "--json")
    run(rivals, monkeypatch, "--students", f"pcm={out}", "--model", tiny_folder, *few)
    results = json.loads(capsys.readouterr().out)
    calls = {(row["solver"], row["nfe"]): row["calls"] for row in results["rows"][:-1]}
    assert calls == {("pcm", 4): 4, ("unipc", 2): 4, ("unipc", 4): 8}
    found = {(row["equal"], row["solver_steps"]) for row in results["student_minus_solver"]}
    assert found == {("calls", 2), ("steps", 4)}
    rows = {(row["solver"], row["nfe"]): row for row in results["rows"]}
    for row in results["student_minus_solver"]:
        gap = rows["pcm", 4]["psnr_db"] - rows["unipc", row["solver_steps"]]["psnr_db"]
        assert row["psnr_db"] == pytest.approx(gap, abs=1e-5)


def test_equal_calls_need_an_even_number() -> None:
    assert rivals.fair_steps(8) == {"calls": 4, "steps": 8}
    assert rivals.fair_steps(1) == {"steps": 1} and rivals.fair_steps(3) == {"steps": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("pcm", "--steps", "7"), "divides 40, not 7"),
        (("endtoend", "--steps", "0"), "divides 40, not 0"),
    ],
)
def test_students_that_cannot_be_are_refused(
    options: Any,
    message: str,
    tiny_folder: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = ("--model", tiny_folder, "--pairs", folder, "--validation", folder, "--out", tmp_path)
    with pytest.raises(SystemExit):
        run(students, monkeypatch, *options, *paths)
    assert message in capsys.readouterr().err


def test_a_missing_or_foreign_student_is_said(teacher: LatentDiffusion, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no student in"):
        students.load_student(tmp_path, teacher)
    (tmp_path / "student.json").write_text(json.dumps({"teacher": "another", "kind": "pcm", "steps": 4}))
    with pytest.raises(ValueError, match="was trained from another model"):
        students.load_student(tmp_path, teacher)

"""Least squares finds the table that made the targets, never loses on validation pairs, and resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from solver import make_plan, sample
from solver.table_policy import TablePolicy
from solver.training import fit as fitting
from solver.training.fit import (
    NormalEquations,
    Stage,
    choose_start,
    closeness,
    fit,
    follow,
    network_calls,
    start_like,
)
from solver.training.pairs import Pairs
from tests.solver.training.test_training import HELD_OUT, MODEL, PAIRS, TASK, S, make

GUIDANCE = (2.5, 3.5)
ROWS = (Stage("rows", ("rows", "state"), 3, 0),)
GRID_THEN_ROWS = (Stage("grid", ("grid",), 2, 8), Stage("rows", ("rows", "state"), 1, 0, last_rows=1))


def table(counts: tuple[int, ...] = (3,), spread: float = 0.0) -> TablePolicy:
    policy = TablePolicy(2, counts=counts, guidance=GUIDANCE)
    generator = torch.Generator().manual_seed(2)
    policy.table.data = spread * torch.randn(policy.table.shape, generator=generator)
    return policy


def drawn_by(policy: TablePolicy, count: int, first_seed: int = 0) -> Pairs:
    """Pairs whose targets a table made, in as many evaluations."""
    pairs, grid = make(count, first_seed), TASK.grid(policy.counts[0])
    with torch.no_grad():
        tables = policy.tables(S, grid, policy.likeliest(grid, pairs.guidance))
        pairs.latents.copy_(TASK.latents(tables, pairs))
    return pairs


@pytest.mark.parametrize("first", range(5))
def test_a_run_is_taken_up_at_any_row(first: int) -> None:
    policy, pairs, grid = table((4,), 0.05), PAIRS.take(range(6)), TASK.grid(4)
    with torch.no_grad():
        tables = policy.tables(S, grid, policy.likeliest(grid, pairs.guidance))
        noise = MODEL.noise(pairs.seeds)
        whole = follow(tables, TASK.denoiser(pairs), noise)
        torch.testing.assert_close(whole.x[-1], sample(tables, TASK.denoiser(pairs), noise))
        asked: list[int] = []

        def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            asked.append(len(x))
            return TASK.denoiser(pairs)(x, t)

        again = follow(tables, counted, noise, whole, first, min(first + 1, 4))
        assert torch.equal(again.x[-1], whole.x[-1]) and len(asked) == max(3 - first, 0)


def test_fitting_finds_the_rows_that_made_the_targets(tmp_path: Path) -> None:
    made = table(spread=0.03)
    for j, kind in enumerate(made.decisions):
        if kind in ("grid", "times"):
            made.table.data[..., j] = 0
    pairs, validation = drawn_by(made, 32), drawn_by(made, 12, 500)
    policy = table()
    before = closeness(policy, TASK, validation, 3)
    fit(policy, TASK, pairs, validation, tmp_path, stages=ROWS)
    assert closeness(policy, TASK, validation, 3) > max(before + 30, 50)


def test_the_last_row_is_the_least_squares_solution() -> None:
    """Undamped, it leaves nothing of the residual in the span of state and outputs."""
    policy, stage = table((4,)), Stage("last row", ("rows", "state"), 1, 0, last_rows=1)
    equations = NormalEquations(policy, 4, stage)
    assert [i for i, _ in equations.columns] == [3, 3, 3]  # two outputs and the state
    equations.add(TASK, PAIRS)
    before = equations.vector.abs().max()
    policy.table.data[0] += equations.solve(0.0)
    # The weights of the pairs stay those of the first linearisation.
    left = equations.vector - equations.matrix @ equations.solve(0.0)[:, 3][:, [0, 1, -1]].flatten().double()
    assert left.abs().max() < 1e-4 * before
    assert closeness(policy, TASK, PAIRS, 4) > closeness(table((4,)), TASK, PAIRS, 4)


def test_no_iteration_loses_on_validation_pairs_and_the_log_tells(tmp_path: Path) -> None:
    policy = table((3, 4))
    start = {N: closeness(policy, TASK, HELD_OUT, N) for N in (3, 4)}
    tables = fit(policy, TASK, PAIRS, HELD_OUT, tmp_path, stages=GRID_THEN_ROWS)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[0]["validation"] >= start[3]
    for N in (3, 4):
        for stage in ("grid", "rows"):
            values = [e["validation"] for e in log if (e["N"], e["stage"]) == (N, stage)]
            assert values == sorted(values)
        assert closeness(policy, TASK, HELD_OUT, N) == pytest.approx(values[-1], abs=1e-3)
    moved = tables["grid"].flatten(0, 2).abs().sum(dim=0) > 0
    assert {kind for kind, is_moved in zip(policy.decisions, moved, strict=True) if is_moved} <= {"grid"}
    assert torch.equal(tables["rows"], policy.table)


def test_an_interrupted_fit_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = table((3, 4))
    fit(whole, TASK, PAIRS, HELD_OUT, tmp_path / "whole", stages=GRID_THEN_ROWS)
    improve, calls = fitting.improve, 0

    def cut_off(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            raise KeyboardInterrupt
        return improve(*arguments)

    monkeypatch.setattr(fitting, "improve", cut_off)
    for _ in range(20):
        policy = table((3, 4))
        try:
            tables = fit(policy, TASK, PAIRS, HELD_OUT, tmp_path / "cut", stages=GRID_THEN_ROWS)
            break
        except KeyboardInterrupt:
            continue
    assert calls > 4 and torch.equal(policy.table, whole.table) and tables.keys() == {"grid", "rows"}


def test_the_grid_starts_where_the_validation_pairs_are_closest() -> None:
    policy = table((4,))
    choose_start(policy, TASK, HELD_OUT, 4)
    chosen = closeness(policy, TASK, HELD_OUT, 4)
    j, along = policy.decisions.index("grid"), torch.linspace(-0.5, 0.5, 3)
    started = policy.table.detach().clone()
    for tilt in fitting.TILTS:
        policy.table.data[0, :, :3, j] = tilt * along
        assert closeness(policy, TASK, HELD_OUT, 4) <= chosen + 1e-4
    moved = started[0].abs().sum(dim=(0, 1)) > 0
    assert not any(is_moved for i, is_moved in enumerate(moved) if i != j)
    torch.testing.assert_close(started[0, 0], started[0, 1])


@pytest.mark.parametrize("stage", GRID_THEN_ROWS)
def test_the_network_is_called_as_often_as_said(stage: Stage) -> None:
    policy, pairs, asked = table((4,)), PAIRS.take(range(8)), 0

    class Counting(type(MODEL)):  # type: ignore[misc]
        def denoiser(self, *arguments: Any) -> Any:
            denoise = super().denoiser(*arguments)

            def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
                nonlocal asked
                asked += len(x)
                return denoise(x, t)

            return counted

    NormalEquations(policy, 4, stage).add(replace(TASK, model=Counting()), pairs)
    assert asked * stage.iterations == network_calls(policy, 4, stage, 8, 0)


def test_a_grid_starts_like_that_of_fewer_steps() -> None:
    policy = TablePolicy(1, learns=("grid", "times"), counts=(3, 5))
    policy.table.data[0, :, :2, 0] = torch.tensor([0.0, 0.4])
    policy.table.data[0, :, :3, 1] = torch.tensor([0.0, 0.1, 0.2])
    start_like(policy, 5, 3)
    torch.testing.assert_close(policy.table.data[1, 0, :4, 0], torch.tensor([0.0, 0.4 / 3, 0.8 / 3, 0.4]))
    torch.testing.assert_close(policy.table.data[1, 1, :5, 1], torch.tensor([0.0, 0.05, 0.1, 0.15, 0.2]))


def test_pairs_of_another_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(MODEL), "fingerprint", "retrained")
    with pytest.raises(ValueError, match="training pairs were made by another model"):
        fit(table(), TASK, PAIRS, HELD_OUT, tmp_path)


def test_the_fitted_solver_is_not_worse_than_dpm_solver(tmp_path: Path) -> None:
    policy = table((5,))
    fit(policy, TASK, PAIRS, HELD_OUT, tmp_path, stages=GRID_THEN_ROWS)
    latents = sample(make_plan("dpm++2m", 5, S), TASK.denoiser(HELD_OUT), MODEL.noise(HELD_OUT.seeds))
    error = (latents - HELD_OUT.latents).square().flatten(1).mean(dim=1)
    assert closeness(policy, TASK, HELD_OUT, 5) > float((-10 * error.log10()).mean()) + 1

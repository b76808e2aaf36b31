"""A table of decisions: untrained it is DPM-Solver++ 2M, with a learned grid it is that solver there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from solver import LearnedSolver, NoiseSchedule, make_plan
from solver.consistency import untrained_plan
from solver.grids import partial_grid, time_grid
from solver.multistep import classical_plan, grid_of, transport
from solver.paper import load_policy
from solver.table_policy import TablePolicy
from tests.solver.toys import FLOW, SD

S = NoiseSchedule.from_config(SD)
CONFIGS = pytest.mark.parametrize(
    "config", [SD, {**SD, "prediction_type": "v_prediction"}, FLOW], ids=["eps", "v", "flow"]
)


def decided(counts: tuple[int, ...] = (3, 5), order: int = 4, only: str = "", **settings: Any) -> TablePolicy:
    """A table of small random decisions, of one kind if `only` is given."""
    policy = TablePolicy(order, counts=counts, **{"guidance": (2.0, 8.0), **settings})
    generator = torch.Generator().manual_seed(3)
    kinds = torch.tensor([not only or name == only for name in policy.decisions])
    policy.table.data = 0.1 * torch.randn(policy.table.shape, generator=generator) * kinds
    return policy


def same(plan: Any, other: Any) -> bool:
    return all(
        np.allclose(np.hstack(getattr(plan, name)), np.hstack(getattr(other, name)), rtol=1e-9, atol=1e-9)
        for name in ("timestep", "alpha", "sigma", "a", "c", "d")
    ) and all(np.allclose(p[:2], q[:2], atol=1e-9) for p, q in zip(plan.b, other.b, strict=True))


@CONFIGS
def test_zeros_are_dpm_solver_plus_plus(config: dict[str, Any]) -> None:
    schedule = NoiseSchedule.from_config(config)
    for N in (1, 2, 3, 8):
        plan = TablePolicy(4, counts=[N]).plan(schedule, time_grid("trailing", schedule, N), 3.0)
        assert same(plan, make_plan("dpm++2m", N, config))
        assert not any(any(row[2:]) for row in plan.b)


@CONFIGS
def test_a_learned_grid_alone_is_the_classical_solver_there(config: dict[str, Any]) -> None:
    schedule = NoiseSchedule.from_config(config)
    trailing = time_grid("trailing", schedule, 5)
    plan = decided(only="grid").plan(schedule, trailing, 4.0)
    assert np.abs(np.subtract(plan.alpha, make_plan("dpm++2m", 5, config).alpha)).max() > 1e-3
    assert same(plan, classical_plan("dpm++2m", schedule, grid_of(plan)))


def test_the_weight_of_the_state_is_free() -> None:
    """Also in the last row, where that of a classical solver in x0 is zero."""
    policy, grid = decided(only="state"), time_grid("trailing", S, 5)
    plan, classic = policy.plan(S, grid, 2.0), make_plan("dpm++2m", 5, SD)
    added = policy.table[1, 0, :5, -1].detach().numpy()
    np.testing.assert_allclose(plan.a, np.add(classic.a, added), atol=1e-7)
    np.testing.assert_allclose([row[0] for row in plan.b], [row[0] for row in classic.b], atol=1e-9)
    assert classic.a[-1] == 0 and abs(plan.a[-1]) > 1e-3


def test_decisions_are_linear_in_the_logarithm_of_the_guidance_scale() -> None:
    policy, grid = decided(), time_grid("trailing", S, 3)
    low, middle, high = policy.likeliest(grid, torch.tensor([2.0, 4.0, 8.0]))
    torch.testing.assert_close(torch.stack([low, high]), policy.table[0, :, :3])
    torch.testing.assert_close(middle, (low + high) / 2)
    beyond = policy.likeliest(grid, torch.tensor([1.0, 20.0]))
    torch.testing.assert_close(beyond, torch.stack([low, high]))


def test_one_guidance_scale_needs_no_second() -> None:
    policy, grid = decided(guidance=(3.0, 3.0)), time_grid("trailing", S, 3)
    for scale in (1.0, 3.0, 9.0):
        torch.testing.assert_close(policy.likeliest(grid, torch.tensor([scale]))[0], policy.table[0, 0, :3])


def test_it_is_asked_for_whole_runs_of_its_numbers_of_steps_alone() -> None:
    learned = LearnedSolver((), decided())
    assert [N for N in range(1, 9) if learned.covers(N)] == [3, 5]
    for N in (3, 4, 5):
        assert (learned.plan(N, S) == make_plan("consistency", N, SD)) == (N == 4)
    # Rows of a grid fit no other one.
    middle = partial_grid(S, 5, 0.6)
    assert len(middle.timestep) in (3, 5)
    assert learned.plan(5, S, strength=0.6) == untrained_plan(S, middle)
    assert learned.plan_on(time_grid("karras", S, 5), S) == untrained_plan(S, time_grid("karras", S, 5))


def test_a_saved_table_makes_the_same_plans(tmp_path: Path) -> None:
    policy, grid = decided(), time_grid("trailing", S, 5)
    policy.save(tmp_path / "policy.safetensors")
    loaded = load_policy(tmp_path / "policy.safetensors")
    assert loaded.settings == policy.settings
    assert loaded.plan(S, grid, 3.3) == policy.plan(S, grid, 3.3)


def test_the_solver_of_the_embedded_model_keeps_the_weight_of_the_state() -> None:
    """Its file is older than the decision."""
    learned = LearnedSolver.load("checkpoints/landscapes/solver")
    if learned.policy is None or "state" in learned.policy.decisions:
        pytest.skip("the embedded model has a newer solver")
    plan = learned.plan(6, S)
    alpha, sigma = torch.tensor([plan.alpha, plan.sigma], dtype=torch.float64)
    np.testing.assert_allclose(plan.a, transport("sample", alpha, sigma)[0], atol=1e-12)


def test_impossible_tables_are_refused() -> None:
    settings: dict[str, Any]
    for settings in ({"counts": []}, {"counts": [0, 4]}, {"counts": [4], "guidance": (0.0, 3.0)}):
        with pytest.raises(ValueError, match="A table needs numbers of steps and guidance above 0"):
            TablePolicy(4, **settings)

"""Zero terminal SNR (Lin et al. 2024): the first level is pure noise, and every plan starts from it."""

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solver import SOLVERS, LearnedSolver, NoiseSchedule, Plan, Policy, advance, make_plan, sample
from solver.grids import GRIDS
from solver.policy import STARTS
from tests.solver.toys import (
    NOISE,
    ZERO_SNR,
    diffusers_scheduler,
    network,
    relative_error,
    run_scheduler,
)

SCHEDULE = NoiseSchedule.from_config(ZERO_SNR)
# diffusers' schedulers speak to NumPy as before 2.0.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
History = deque[torch.Tensor]
DPM = "DPMSolverMultistepScheduler"


def in_float64(plan: Plan) -> torch.Tensor:
    """What `sample` makes without rounding."""
    x, history = NOISE.double(), History()
    for i, t in enumerate(plan.timestep):
        x, q = advance(plan, i, x, network(x, torch.full((len(x),), t)), history)
        history.appendleft(q)
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 7, 40, 50])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_plan_starts_at_pure_noise_and_loses_no_digits(solver: str, steps: int) -> None:
    plan = make_plan(solver, steps, SCHEDULE)
    assert plan.timestep[0] == 999 and plan.alpha[0] == pytest.approx(2**-12) and plan.sigma[-1] == 0
    assert max(map(abs, plan.a)) < 20 and max(abs(weight) for row in plan.b for weight in row) < 20
    assert relative_error(sample(plan, network, NOISE), in_float64(plan)) < 3e-6


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 20, 40])
@pytest.mark.parametrize(
    ("solver", "class_name", "options", "tolerance"),
    [
        ("ddim", "DDIMScheduler", {"clip_sample": False}, 1e-3),  # which has exactly 0 for 2⁻¹²
        ("euler", "EulerDiscreteScheduler", {}, 3e-4),  # which keeps x / α, and so 2⁻¹² fewer digits
        ("dpm++2m", DPM, {}, 1e-5),
        ("dpm++3m", DPM, {"solver_order": 3}, 1e-5),
        ("unipc", "UniPCMultistepScheduler", {}, 1e-5),
    ],
)
def test_plans_are_the_schedulers_of_diffusers(
    solver: str, class_name: str, options: Any, tolerance: float, steps: int
) -> None:
    scheduler = diffusers_scheduler(class_name, **ZERO_SNR | options)
    expected = run_scheduler(scheduler, NOISE, num_inference_steps=steps)
    assert relative_error(sample(make_plan(solver, steps, scheduler), network, NOISE), expected) < tolerance


def test_methods_in_noise_begin_with_ddim_and_forget_it() -> None:
    ddim = make_plan("ddim", 6, SCHEDULE)
    for solver in ("dpm2m", "deis", "ab4", "heun", "euler"):
        plan = make_plan(solver, 6, SCHEDULE)
        np.testing.assert_allclose((plan.a[0], *plan.b[0], plan.c[0], plan.d[0]),
                                   (ddim.a[0], *ddim.b[0], ddim.c[0], ddim.d[0]))  # fmt: skip
        assert not any(row[i] for i, row in enumerate(plan.b) if 0 < i < len(row))
    assert make_plan("heun", 6, SCHEDULE).nfe == 10 and make_plan("heun", 6, SCHEDULE).steps == 6


@settings(deadline=None, max_examples=40)
@given(
    start=st.sampled_from(sorted(STARTS)),
    order=st.integers(1, 6),
    steps=st.integers(1, 12),
    grid=st.sampled_from([grid for grid in GRIDS if grid != "leading"]),
    learns=st.sampled_from([("rows",), ("rows", "grid"), ("rows", "grid", "times")]),
    seed=st.integers(0, 9),
)
def test_learned_plans_follow_what_never_changes(
    start: str, order: int, steps: int, grid: str, learns: tuple[str, ...], seed: int
) -> None:
    """Whatever was learned: finite numbers, and rows of a moderate size that sum to one."""
    policy = Policy(order, start, learns)
    with torch.no_grad():
        policy.mlp[-1].get_parameter("bias").normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
    plan = LearnedSolver(policy=policy).plan(steps, SCHEDULE, grid=grid)
    x0, epsilon = torch.eye(2, dtype=torch.float64)
    x, history = plan.alpha[0] * x0 + plan.sigma[0] * epsilon, History()
    for i in range(plan.nfe):
        t = plan.timestep[i]
        alpha, sigma = plan.alpha[i], plan.sigma[i]
        assert 0 <= t <= 999
        x, q = advance(plan, i, x, alpha * epsilon - sigma * x0, history)
        history.appendleft(q)
        expected = plan.alpha[i + 1] * x0 + plan.sigma[i + 1] * epsilon
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    if grid in ("trailing", "linspace"):  # others may put several levels next to pure noise
        assert max(map(abs, plan.a)) < 100


def test_a_network_that_predicts_noise_keeps_its_rows() -> None:
    schedule = NoiseSchedule.from_config({**ZERO_SNR, "prediction_type": "epsilon"})
    plan = make_plan("euler", 4, schedule)
    assert plan.c[0] == 0 and plan.d[0] == 1

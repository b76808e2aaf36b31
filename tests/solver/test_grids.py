from typing import Any

import numpy as np
import pytest
import torch

from solver import GRIDS, SOLVERS, NoiseSchedule, make_plan, sample
from solver.grids import time_grid
from tests.solver.toys import FLOW, NOISE, SD, diffusers_scheduler, network, relative_error, run_scheduler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

# How diffusers' DPM-Solver is told to use each grid.
NATIVE: dict[str, dict[str, Any]] = {
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}


@pytest.mark.parametrize("betas", ["scaled_linear", "linear"])
@pytest.mark.parametrize("grid", NATIVE)
def test_grid_is_that_of_diffusers(grid: str, betas: Any) -> None:
    config = SD | {"beta_schedule": betas}
    schedule = NoiseSchedule.from_config(config)
    scheduler = diffusers_scheduler("DPMSolverMultistepScheduler", **config | NATIVE[grid])
    for steps in range(1, 51):
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) > steps:
            continue  # trailing by arange sometimes makes one too many
        t, lam = time_grid(grid, schedule, steps)
        np.testing.assert_allclose(torch.exp(-lam), scheduler.sigmas, rtol=1e-5)
        # diffusers rounds the timesteps told, except that for exponential levels it cuts off the fraction.
        tolerance = 1 if grid == "exponential" else 0
        np.testing.assert_allclose(t, scheduler.timesteps, atol=tolerance, rtol=0)


@pytest.mark.parametrize("grid", [grid for grid in NATIVE if grid != "exponential"])
@pytest.mark.parametrize(
    ("solver", "class_name"),
    [("dpm++2m", "DPMSolverMultistepScheduler"), ("unipc", "UniPCMultistepScheduler")],
)
def test_solvers_on_each_grid_are_diffusers(solver: str, class_name: Any, grid: str) -> None:
    if solver == "unipc" and grid == "lu":
        pytest.skip("diffusers' UniPC has no such grid")
    scheduler = diffusers_scheduler(class_name, **SD | NATIVE[grid])
    for steps in (1, 4, 6, 7, 20, 50):
        expected = run_scheduler(scheduler, NOISE, num_inference_steps=steps)
        plan = make_plan(solver, steps, SD, grid=grid)
        assert relative_error(sample(plan, network, NOISE), expected) < 1e-5, steps


@pytest.mark.parametrize("config", [SD, FLOW], ids=["betas", "flow"])
@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid != "leading"])
def test_every_grid_starts_at_pure_noise_and_ends_clean(grid: str, config: dict[str, Any]) -> None:
    schedule = NoiseSchedule.from_config(config)
    for steps in (1, 2, 6, 40):
        t, lam = time_grid(grid, schedule, steps)
        alpha, sigma = schedule.levels(lam)
        assert len(t) == steps and len(lam) == steps + 1
        assert float(t[0]) == pytest.approx(schedule.first_timestep, rel=1e-9)
        assert float(sigma[0]) == pytest.approx(float(schedule.sigma(schedule.first_timestep)), rel=1e-9)
        assert (sigma.diff() < 0).all() and (alpha.diff() > 0).all()
        assert (alpha[-1], sigma[-1]) == (1, 0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_solver_runs_on_every_grid(grid: str, solver: str) -> None:
    plan = make_plan(solver, 6, SD, grid=grid)
    assert sample(plan, network, NOISE).isfinite().all()


def test_logsnr_steps_are_equal() -> None:
    steps = time_grid("logsnr", NoiseSchedule.from_config(SD), 8).lam[:-1].diff()
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)


def test_flow_linspace_spans_the_training_levels() -> None:
    t = time_grid("linspace", NoiseSchedule("flow_prediction"), 5).timestep
    np.testing.assert_allclose(t, np.linspace(1000, 1, 5), rtol=2e-6)


def test_leading_starts_below_pure_noise_and_is_no_grid_of_a_flow() -> None:
    assert time_grid("leading", NoiseSchedule.from_config(SD), 6)[0][0] == 852
    with pytest.raises(ValueError, match="A flow has no leading grid"):
        make_plan("euler", 6, FLOW, grid="leading")
    with pytest.raises(ValueError, match="fewer than 1000 steps"):
        make_plan("euler", 1000, SD, grid="leading")


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid != "leading"])
@pytest.mark.parametrize("steps", [1, 5, 12, 40])
def test_grids_can_end_at_the_lowest_level(grid: str, steps: int) -> None:
    schedule = NoiseSchedule.from_config(SD)
    t, lam = time_grid(grid, schedule, steps, to_zero=False)
    whole = time_grid(grid, schedule, steps)
    assert (t[0], lam[0]) == (whole.timestep[0], whole.lam[0]), "the start is the same"
    assert len(t) == steps and len(lam) == steps + 1
    assert lam[-1] == schedule.lam(0.0) and bool((lam.diff() > 0).all())


def test_a_flow_has_no_lowest_level() -> None:
    with pytest.raises(ValueError, match="A flow ends at σ = 0"):
        time_grid("trailing", NoiseSchedule.from_config(FLOW), 5, to_zero=False)

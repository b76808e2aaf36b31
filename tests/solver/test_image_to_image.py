"""Plans that start from a noised picture: preview and refinement begin at the same level."""

from typing import Any

import numpy as np
import pytest
import torch

from solver import SOLVERS, LearnedSolver, NoiseSchedule, Policy, SampleState, make_plan, sample
from solver.grids import partial_grid, time_grid

SD = NoiseSchedule.from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
)
FLOW = NoiseSchedule.from_config({"shift": 3.0, "num_train_timesteps": 1000})
SCHEDULES = {"variance-preserving": SD, "flow": FLOW}


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return SCHEDULES[request.param]


@pytest.mark.parametrize("strength", [0.05, 0.37, 0.6, 0.999])
@pytest.mark.parametrize("solver", ["consistency", "dpm++2m", "euler"])
def test_any_number_of_steps_starts_at_one_level(schedule: Any, strength: float, solver: str) -> None:
    plans = [make_plan(solver, steps, schedule, strength=strength) for steps in (1, 4, 6, 7, 40)]
    firsts = {(plan.timestep[0], plan.alpha[0], plan.sigma[0]) for plan in plans}
    assert len(firsts) == 1
    assert all((plan.alpha[-1], plan.sigma[-1]) == (1, 0) for plan in plans)


def test_no_step_is_longer_than_from_pure_noise(schedule: Any) -> None:
    for steps in (1, 4, 6, 40):
        longest = np.abs(np.diff(np.append(time_grid("trailing", schedule, steps).timestep, 0))).max()
        for strength in (0.1, 0.45, 0.8):
            t = np.append(partial_grid(schedule, steps, strength).timestep, 0)
            assert np.abs(np.diff(t)).max() <= longest + 1  # timesteps are rounded


@pytest.mark.parametrize(("steps", "strength", "made"), [(6, 0.5, 3), (40, 0.6, 24), (10, 0.3, 3)])
def test_where_whole_steps_are_made_they_are_the_last_of_the_whole_grid(
    schedule: Any, steps: int, strength: float, made: Any
) -> None:
    part, whole = partial_grid(schedule, steps, strength), time_grid("trailing", schedule, steps)
    assert len(part.timestep) == made
    for mine, theirs in zip(part, whole, strict=True):
        np.testing.assert_allclose(mine, theirs[steps - made :], rtol=1e-9)


def test_more_strength_is_more_noise_and_all_of_it_is_the_usual_plan(schedule: Any) -> None:
    sigmas = [make_plan("ddim", 6, schedule, strength=s).sigma[0] for s in (0.1, 0.3, 0.5, 0.7, 0.9, 1)]
    assert sigmas == sorted(set(sigmas))
    assert make_plan("ddim", 6, schedule, strength=1) == make_plan("ddim", 6, schedule)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_finds_the_picture_where_the_network_knows_it(solver: str) -> None:
    clean, noise = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1.0, 0.5, -0.7])
    plan = make_plan(solver, 7, SD, strength=0.55)
    state = SampleState.start(plan, noise, clean)
    while not state.done:
        state.step(noise)  # an ε network that is right
    torch.testing.assert_close(state.x, clean, rtol=1e-4, atol=1e-4)


def test_from_noise_alone_nothing_changes() -> None:
    plan, noise = make_plan("ddim", 4, SD), torch.ones(1, 2)
    assert torch.equal(SampleState.start(plan, noise).x, noise)
    assert sample(plan, lambda x, t: x, noise).shape == (1, 2)


def test_a_learned_policy_decides_from_the_level_on_and_tables_do_not() -> None:
    torch.manual_seed(0)
    policy = Policy(order=3, steps=(3, 9), guidance=(1.0, 5.0))
    for weights in policy.parameters():
        torch.nn.init.normal_(weights, std=0.1)
    table = make_plan("ddim", 6, SD)
    learned = LearnedSolver([table], policy)
    plan = make_plan("consistency", 6, SD, learned=learned, strength=0.6)
    assert plan.nfe == 4
    assert plan.sigma[0] == pytest.approx(float(SD.levels(partial_grid(SD, 6, 0.6).lam)[1][0]))
    assert plan.b != make_plan("consistency", 6, SD, strength=0.6).b
    assert make_plan("consistency", 6, SD, learned=learned) == table


@pytest.mark.parametrize("strength", [0, -0.1, 1.1, 0.0005, float("nan")])
def test_strengths_out_of_range_are_refused_with_a_message(schedule: Any, strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength must be from 0\.001 to 1"):
        make_plan("ddim", 6, schedule, strength=strength)


def test_other_grids_are_refused_with_a_message() -> None:
    with pytest.raises(ValueError, match="grid is trailing, not karras"):
        make_plan("ddim", 6, SD, grid="karras", strength=0.5)

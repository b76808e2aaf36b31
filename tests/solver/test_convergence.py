"""Order of convergence where the ODE has a closed solution, in float64."""

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch

from solver import SOLVERS, NoiseSchedule, Plan, advance, make_plan, sample
from solver.plan import as_mixture
from tests.solver.toys import FLOW, NOISE, SD, ZERO_SNR, Gaussian

History = deque[torch.Tensor]
EVERY: list[tuple[str, dict[str, Any]]] = [(s, config) for s in SOLVERS for config in (SD, ZERO_SNR)]
EVERY += [(s, FLOW) for s in SOLVERS if s not in ("dpm2m", "deis")]
Z = torch.linspace(-2, 2, 9, dtype=torch.float64)


def exact(plan: Plan, data: Gaussian, i: int) -> torch.Tensor:
    return data.x(plan.alpha[i], plan.sigma[i], Z)


def error(plan: Plan, data: Gaussian, first: int, last: int) -> float:
    """How far x[last] is off when x and all outputs were exact up to row `first`."""
    x, history = exact(plan, data, 0), History(maxlen=plan.columns)
    for i in range(last):
        if i <= first:
            x = exact(plan, data, i)
        output = data.output(x * plan.input_scale[i], plan.timestep[i])
        x, q = advance(plan, i, x, output, history)
        history.appendleft(q)
    return float((x - exact(plan, data, last)).abs().max())


@pytest.mark.parametrize(
    ("solver", "config", "order"),
    [
        ("ddim", SD, 1),
        ("ddim", FLOW, 1),
        ("euler", FLOW, 1),
        ("dpm2m", SD, 2),
        ("dpm++2m", SD, 2),
        ("dpm++2m", FLOW, 2),
        ("deis", SD, 2),
        ("heun", SD, 2),
        *((solver, ZERO_SNR, 2) for solver in ("dpm2m", "dpm++2m", "deis", "heun")),
        ("heun", FLOW, 2),
        ("unipc", SD, 3),  # a second-order predictor; the corrector adds one
        ("unipc", FLOW, 3),
        ("unipc3", SD, 4),
        ("unip3", SD, 3),
        ("unip3", FLOW, 3),
        # The second difference in its third-order step lacks a factor of 2, which costs it an order.
        ("dpm++3m", SD, 2),
        ("dpm++3m", FLOW, 2),
        ("ab4", {**FLOW, "shift": 1.0}, 4),  # shift 1 makes the steps equal, as its weights suppose
    ],
)
def test_error_falls_with_the_order(solver: str, config: dict[str, Any], order: int) -> None:
    """From a quarter of the way to three quarters: past the low-order first rows, before the last row."""
    data = Gaussian(NoiseSchedule.from_config(config))
    errors = []
    for steps in (100, 200):
        plan = make_plan(solver, steps, config)
        evaluations = 2 if plan.nfe > steps else 1
        errors.append(error(plan, data, evaluations * steps // 4, evaluations * steps * 3 // 4))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("solver", "config"), EVERY)
def test_more_steps_come_closer_to_the_exact_picture(solver: str, config: dict[str, Any]) -> None:
    data = Gaussian(NoiseSchedule.from_config(config))
    errors = []
    for steps in (5, 10, 20, 40):
        plan = make_plan(solver, steps, config)
        picture = sample(plan, lambda x, t: data.output(x, float(t[0])), NOISE)
        alpha, sigma = (float(f(plan.timestep[0])) for f in (data.schedule.alpha, data.schedule.sigma))
        z = (NOISE - alpha * data.mean) / np.sqrt(alpha**2 * data.std**2 + sigma**2)
        errors.append(float((picture - data.mean - data.std * z).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 3  # the landing from the last level alone allows about 1 / steps


@pytest.mark.parametrize(("solver", "config"), EVERY)
def test_data_and_noise_that_never_change_are_followed_exactly(solver: str, config: dict[str, Any]) -> None:
    """What "consistent" means for a multistep method: x[i] stays at alpha[i]·x0 + sigma[i]·ε."""
    plan = make_plan(solver, 9, config)
    x0, epsilon = torch.eye(2, dtype=torch.float64)
    x, history = plan.alpha[0] * x0 + plan.sigma[0] * epsilon, History(maxlen=plan.columns)
    for i in range(plan.nfe):
        p, r = as_mixture(plan.prediction_type, plan.alpha[i], plan.sigma[i])
        x, q = advance(plan, i, x, p * x0 + r * epsilon, history)
        history.appendleft(q)
        torch.testing.assert_close(x, plan.alpha[i + 1] * x0 + plan.sigma[i + 1] * epsilon, rtol=0, atol=1e-5)


def test_fourth_order_weights_are_exact_for_cubic_velocities() -> None:
    plan = make_plan("ab4", 12, {**FLOW, "shift": 1.0})
    x, history = torch.zeros((), dtype=torch.float64), History(maxlen=plan.columns)
    for i in range(plan.nfe):
        sigma = plan.sigma[i]
        if i == 4:  # by then every row has order four
            x = torch.tensor(sigma**4 / 4 - sigma**2, dtype=torch.float64)
        x, q = advance(plan, i, x, torch.tensor(sigma**3 - 2 * sigma, dtype=torch.float64), history)
        history.appendleft(q)
    # σ⁴/4 - σ² is 0 at the end. The first σ is 1 - 1e-6, so the first step is that much shorter.
    assert abs(float(x)) < 1e-6

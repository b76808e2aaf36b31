"""The solvers as written out: exact for what they interpolate, of their order, equal to diffusers'."""

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from solver import NoiseSchedule, Plan, advance, make_plan, read_plan, sample
from solver.grids import grid_at_sigmas, time_grid
from solver.multistep import (
    ADAMS_BASHFORTH,
    METHODS,
    deis,
    dpm2m,
    dpmpp3m,
    multistep,
    transport,
    unip3,
    unipc,
    variable_adams_bashforth,
)
from tests.solver.toys import FLOW, NOISE, SD, diffusers_scheduler, network, relative_error

S = NoiseSchedule.from_config(SD)
ORDERS = pytest.mark.parametrize("order", [1, 2, 3, 4])
UNEQUAL = torch.tensor([3.0, 2.2, 1.9, 1.0, 0.65, 0.3, 0.0], dtype=torch.float64)
LAM = torch.tensor([-2.0, -1.5, -0.7, 0.4, 0.9, 2.1, 2.3, torch.inf], dtype=torch.float64)


@pytest.mark.parametrize("solver", METHODS)
@pytest.mark.parametrize("steps", [1, 2, 3, 6, 15, 40])
def test_weights_sum_to_one_and_use_only_outputs_that_exist(solver: str, steps: int) -> None:
    weights = METHODS[solver].weights(time_grid("trailing", S, steps).lam)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(steps, dtype=torch.float64))
    assert torch.equal(weights, weights.tril())
    assert weights.isfinite().all()
    if solver != "ab4":  # whose weights are those of equal steps everywhere
        assert torch.equal(weights[-1], torch.eye(weights.shape[1], dtype=torch.float64)[0])


def integral(i: int, sign: float, degree: int) -> float:
    """Mean of λ^degree over step i, weighted by e^(±λ), by Gauss's rule."""
    u, w = np.polynomial.legendre.leggauss(40)
    low, high = LAM[i].item(), LAM[i + 1].item()
    lam = low + (u + 1) / 2 * (high - low)
    kernel = w * np.exp(sign * lam)
    return float(np.sum(kernel * lam**degree) / np.sum(kernel))


@pytest.mark.parametrize(("weights", "sign", "order"), [(deis, -1, 2), (unip3, 1, 3)])
def test_exponential_methods_integrate_polynomials_in_lam_exactly(
    weights: Any, sign: Any, order: int
) -> None:
    rows = weights(LAM)
    for i in range(order - 1, len(LAM) - (2 if order == 2 else 3)):
        nodes = LAM[[i - k for k in range(order)]]
        for degree in range(order + 1):
            error = abs(float(rows[i] @ nodes**degree) - integral(i, sign, degree))
            assert error < 1e-10 if degree < order else error > 1e-3


def test_third_difference_of_dpmpp3m_has_half_of_its_weight() -> None:
    """It is the parabola's rule only for lines; the missing half is what costs it an order."""
    half, whole = dpmpp3m(LAM), unip3(LAM)
    for i in range(2, 5):
        nodes = LAM[[i, i - 1, i - 2]]
        for degree in (0, 1):
            assert float((half[i] - whole[i]) @ nodes**degree) == pytest.approx(0, abs=1e-12)
        second = whole[i] - dpm_line(i)
        assert torch.allclose(half[i] - dpm_line(i), second / 2)


def dpm_line(i: int) -> Tensor:
    """The weights of step i for a line with the parabola's slope at λ[i]."""
    h, r0, r1 = LAM[i + 1] - LAM[i], LAM[i] - LAM[i - 1], LAM[i - 1] - LAM[i - 2]
    E0, E1 = LAM.new_tensor([1, -1, 0]) / r0, LAM.new_tensor([0, 1, -1]) / r1
    slope = E0 + r0 * (E0 - E1) / (r0 + r1)
    return LAM.new_tensor([1, 0, 0]) + slope * (integral(i, 1, 1) - LAM[i]) + 0 * h


def test_two_step_weights_are_exact_for_lines_in_lam() -> None:
    """Their weights sum to one and have their centre in the middle of the step, however unequal the steps."""
    for i, row in enumerate(dpm2m(LAM)[:-1]):
        centre = sum(float(w) * float(LAM[i - k]) for k, w in enumerate(row) if w)
        assert centre == pytest.approx(float(LAM[i] if i == 0 else (LAM[i] + LAM[i + 1]) / 2))


def test_unipc_is_its_predictor_and_its_corrector_taken_in_turn() -> None:
    """One row of three columns does what the paper's two formulas do with a corrected state beside it."""
    grid = time_grid("trailing", S, 7)
    alpha, sigma = S.levels(grid.lam)
    A, B = transport("sample", alpha, sigma)
    lam, h = grid.lam, grid.lam.diff()
    x0 = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = corrected = torch.tensor(0.3, dtype=torch.float64)
    for i in range(7):
        if i:  # UniC-p with B(h) = e^h - 1 over the step that led here, p = min(i, 2)
            D, hh = x0[i] - x0[i - 1], -h[i - 1]
            phi1 = torch.expm1(hh)
            b1 = (phi1 / hh - 1) / phi1
            b2 = 2 * ((phi1 / hh - 1) / hh - 1 / 2) / phi1
            change = D / 2
            if i > 1:
                r = (lam[i - 2] - lam[i - 1]) / h[i - 1]
                R = torch.stack([torch.ones(2, dtype=torch.float64), torch.stack([r, torch.ones_like(r)])])
                rho = torch.linalg.solve(R, torch.stack([b1, b2]))
                change = rho[0] * (x0[i - 2] - x0[i - 1]) / r + rho[1] * D
            corrected = A[i - 1] * corrected + B[i - 1] * (x0[i - 1] + change)
        ratio = h[i] / h[i - 1] / 2 if 0 < i < 6 else 0.0
        predicted = A[i] * corrected + B[i] * (x0[i] + ratio * (x0[i] - x0[i - 1] if i else 0.0))
        row = unipc(lam)[i]
        x = A[i] * x + B[i] * sum(row[k] * x0[i - k] for k in range(min(i + 1, 3)))
        assert float(x) == pytest.approx(float(predicted), rel=1e-12)


UNIP3: dict[str, Any] = {"solver_order": 3, "disable_corrector": list(range(1000))}


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 14, 15, 40])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_unip3_is_unipc_of_diffusers_without_its_corrector(prediction_type: str, steps: int) -> None:
    config = SD | {"prediction_type": prediction_type}
    theirs = read_plan(diffusers_scheduler("UniPCMultistepScheduler", **config | UNIP3), steps)
    ours = make_plan("unip3", steps, config)
    assert relative_error(sample(ours, network, NOISE), sample(theirs, network, NOISE)) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 14, 15, 40])
@pytest.mark.parametrize("order", [2, 3])
def test_unipc_of_both_orders_is_that_of_diffusers(order: int, steps: int) -> None:
    theirs = read_plan(diffusers_scheduler("UniPCMultistepScheduler", **SD, solver_order=order), steps)
    ours = make_plan({2: "unipc", 3: "unipc3"}[order], steps, SD)
    assert relative_error(sample(ours, network, NOISE), sample(theirs, network, NOISE)) < 1e-5


def test_unip3_and_dpmpp3m_are_two_methods() -> None:
    a, b = make_plan("unip3", 8, SD), make_plan("dpm++3m", 8, SD)
    assert relative_error(sample(a, network, NOISE), sample(b, network, NOISE)) > 1e-3


@ORDERS
def test_unequal_steps_are_exact_for_polynomials(order: int) -> None:
    """Row i integrates polynomials of degree < min(i + 1, order) exactly, and no higher ones."""
    for i, row in enumerate(variable_adams_bashforth(UNEQUAL, order)):
        used = min(i + 1, order)
        nodes, (s, s_next) = UNEQUAL[: i + 1].flip(0)[:used], UNEQUAL[i : i + 2].tolist()
        for degree in range(used + 1):
            exact = (s_next ** (degree + 1) - s ** (degree + 1)) / (degree + 1)
            error = abs((s_next - s) * float(row[:used] @ nodes**degree) - exact)
            assert error < 1e-12 if degree < used else error > 1e-4


@ORDERS
def test_equal_steps_have_the_textbook_weights(order: int) -> None:
    rows = variable_adams_bashforth(torch.linspace(1, 0, 8, dtype=torch.float64), order)
    for i, row in enumerate(rows):
        used = min(i + 1, order)
        np.testing.assert_allclose(row[:used], ADAMS_BASHFORTH[used - 1], rtol=1e-9)


def test_polynomial_noise_is_followed_exactly() -> None:
    """A noise that is a cubic in n = σ / α has its integral reached to the last digits, from row 3 on."""
    grid = grid_at_sigmas(UNEQUAL, S)
    rows = variable_adams_bashforth(torch.exp(-grid.lam), 4)
    plan = multistep(rows[None], "epsilon", S, grid).plan(0, "ab")
    n = np.divide(plan.sigma, plan.alpha)
    primitive = n**4 / 4 - n**2 + n
    history: deque[Tensor] = deque(maxlen=plan.columns)
    x = torch.zeros((), dtype=torch.float64)
    for i in range(plan.nfe):
        if i <= 3:
            x = torch.tensor(plan.alpha[i] * primitive[i])
        x, q = advance(plan, i, x, torch.tensor(n[i] ** 3 - 2 * n[i] + 1), history)
        history.appendleft(q)
    assert abs(float(x) - primitive[-1]) < 1e-12


def test_named_adams_bashforth_is_the_variable_one_for_equal_steps() -> None:
    flow = NoiseSchedule.from_config({**FLOW, "shift": 1.0})
    grid = time_grid("trailing", flow, 8)
    rows = variable_adams_bashforth(flow.levels(grid.lam)[1], 4)
    np.testing.assert_allclose(rows, METHODS["ab4"].weights(grid.lam), rtol=1e-4)  # the first σ is 1 - 1e-6


@pytest.mark.parametrize("combines", ["epsilon", "sample"])
def test_transport_is_the_written_out_step(combines: Any) -> None:
    alpha, sigma = S.levels(time_grid("trailing", S, 5).lam)
    A, B = transport(combines, alpha, sigma)
    if combines == "epsilon":
        torch.testing.assert_close(A, alpha[1:] / alpha[:-1])
        torch.testing.assert_close(B, alpha[1:] * (sigma / alpha).diff())
    else:
        h = torch.log(alpha[:-1] / sigma[:-1]).diff()
        torch.testing.assert_close(A, sigma[1:] / sigma[:-1])
        torch.testing.assert_close(B[:-1], -alpha[1:-1] * torch.expm1(-h))
    with pytest.raises(ValueError, match="combines epsilon, sample or flow_prediction, not 'v_prediction'"):
        transport("v_prediction", alpha, sigma)


def test_noise_on_a_flow_is_refused() -> None:
    flow = NoiseSchedule.from_config(FLOW)
    grid = time_grid("trailing", flow, 4)
    with pytest.raises(ValueError, match="A flow does not know the noise at its start"):
        multistep(torch.ones(1, 4, 1, dtype=torch.float64), "epsilon", flow, grid)


def test_a_plan_is_row_zero_of_its_tables() -> None:
    grid = time_grid("trailing", S, 6)
    weights = torch.stack([dpm2m(grid.lam), 2 * dpm2m(grid.lam)])
    tables = multistep(weights, "sample", S, grid)
    assert tables.plan(0, "dpm++2m") == make_plan("dpm++2m", 6, SD)
    twice = tables.plan(1, "twice")
    assert isinstance(twice, Plan)
    np.testing.assert_allclose(np.concatenate(twice.b), 2 * np.concatenate(tables.plan(0, "once").b))

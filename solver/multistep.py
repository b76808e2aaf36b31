"""Linear multistep methods from their weights: the paper's form, and the classical weights that start it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.polynomial import polynomial

from solver.grids import TimeGrid
from solver.plan import Plan, coordinates, reading
from solver.schedule import Array, NoiseSchedule

Weights = Sequence[Sequence[float]]
"""Row i weighs q[i], q[i-1], …, newest first."""

# Adams-Bashforth weights of order 1 to 4 for equal steps, newest output first (Hairer, Nørsett & Wanner,
# Solving Ordinary Differential Equations I, III.1). A first-order method is Euler's.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)

# What a multistep method may combine: what stays the same along a straight path.
READINGS = ("epsilon", "sample", "flow_prediction")


def transport(read_as: str, grid: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    """(A, B) [N] with x[i+1] = A[i] · x[i] + B[i] · q, exact while q stays the same.

    On data and noise that never change x[i] is α[i]·x0 + σ[i]·ε and q is p·x0 + r·ε, so A and B solve
    α[i+1] = A·α[i] + B·p and σ[i+1] = A·σ[i] + B·r. Written out with y = x / α, n = σ / α and h the step in
    log-SNR: in ε y[i+1] = y[i] + (n[i+1] - n[i]) · ε, which is DDIM's and the paper's step; in x0
    x[i+1] = σ[i+1] / σ[i] · x[i] + α[i+1] · (1 - exp(-h)) · x0, which is DPM-Solver++'s; on a flow Euler's
    x[i+1] = x[i] + (σ[i+1] - σ[i]) · v.

    The grid's levels are arrays or tensors [..., N + 1].

    Raises:
        ValueError: a reading that is not one of `READINGS`.
    """
    if read_as not in READINGS:
        raise ValueError(f"A multistep method combines {', '.join(READINGS)}, not {read_as!r}.")
    _, alpha, sigma = grid
    p, r = coordinates(read_as, 1.0, 0.0)
    (now_a, next_a), (now_s, next_s) = ((x[..., :-1], x[..., 1:]) for x in (alpha, sigma))
    determinant = now_a * r - now_s * p
    A = (next_a * r - next_s * p) / determinant
    B = (now_a * next_s - next_a * now_s) / determinant
    return A, B


def multistep_plan(
    solver: str, weights: Weights, read_as: str, schedule: NoiseSchedule, grid: TimeGrid
) -> Plan:
    """The plan x[i+1] = A[i] · x[i] + B[i] · Σ_k weights[i][k] · q[i-k], with A and B of `transport`.

    Weights that sum to one make it consistent: data and noise that never change are followed exactly.

    Args:
        solver: the plan's name.
        weights: N rows.
        read_as: how the outputs are read, one of `READINGS`.

    Raises:
        ValueError: weights that do not fit the grid, or a reading that the schedule does not allow (ε on a
            flow, which does not know it at its start).
    """
    t, alpha, sigma = grid
    if read_as == "epsilon" and schedule.is_flow:
        raise ValueError("A flow does not know the noise at its start; read it as x0 or a velocity.")
    A, B = transport(read_as, grid)
    levels = zip(alpha[:-1], sigma[:-1], strict=True)
    readings = [reading(schedule.prediction_type, read_as, *level) for level in levels]
    return Plan(
        solver=solver,
        prediction_type=schedule.prediction_type,
        timestep=tuple(t),
        alpha=tuple(alpha),
        sigma=tuple(sigma),
        a=tuple(A),
        b=tuple(tuple(B[i] * w for w in row) for i, row in enumerate(weights)),
        c=tuple(c for c, _ in readings),
        d=tuple(d for _, d in readings),
        input_scale=(1.0,) * len(t),
        init_noise_scale=1.0,
    )


def adams_bashforth_plan(solver: str, order: int, schedule: NoiseSchedule, grid: TimeGrid) -> Plan:
    """The linear multistep method of the ConsistencySolver paper with Adams-Bashforth's weights, as in iPNDM.

    With y = x / α and n = σ / α the ODE is dy/dn = ε, and
    y[i+1] = y[i] + (n[i+1] - n[i]) · Σ_k w_k · ε[i-k]; on a flow the same with x, σ and the velocity. The
    weights are those for equal steps whatever the grid, which is what iPNDM means; so they always sum to one,
    but have order `order` only where the steps in n are equal, as on an unshifted flow.

    Args:
        order: 1 (Euler's method) to 4; the first rows use as many outputs as there are.
    """
    weights = [ADAMS_BASHFORTH[min(i + 1, order) - 1] for i in range(len(grid[0]))]
    return multistep_plan(
        solver, weights, "flow_prediction" if schedule.is_flow else "epsilon", schedule, grid
    )


def variable_adams_bashforth(s: Array, order: int) -> list[list[float]]:
    """Adams-Bashforth weights for unequal steps, exact for polynomials of degree < min(i + 1, order).

    Row i integrates over [s[i], s[i+1]] the polynomial through the values at s[i], s[i-1], … and divides by
    the step (Hairer, Nørsett & Wanner, III.5). They sum to one, and are `ADAMS_BASHFORTH` for equal steps.

    Args:
        s: [N + 1], all different: σ / α where ε is combined, σ for a velocity.
        order: at least 1.
    """
    rows = []
    for i, h in enumerate(np.diff(s)):
        u = (s[max(i - order + 1, 0) : i + 1][::-1] - s[i]) / h  # the nodes, the step being [0, 1]
        row = []
        for j in range(len(u)):
            others = np.delete(u, j)
            integral = polynomial.polyint(polynomial.polyfromroots(others))
            row.append(float(polynomial.polyval(1.0, integral) / np.prod(u[j] - others)))
        rows.append(row)
    return rows


def dpm_solver_2m(log_snr: Array) -> list[list[float]]:
    """The weights of DPM-Solver-2M and DPM-Solver++ 2M: 1 + 1 / 2r and -1 / 2r (Lu et al. 2022b, alg. 2).

    r is the last step in log-SNR over this one. The first row has one output only; so has a last row that
    ends at σ = 0, where the log-SNR is infinite.

    Args:
        log_snr: λ [N + 1], rising.
    """
    h = np.diff(log_snr)
    rows = [[1.0]]
    rows += [
        [1 + ratio / 2, -ratio / 2] if np.isfinite(ratio) else [1.0] for ratio in (h[1:] / h[:-1]).tolist()
    ]
    return rows

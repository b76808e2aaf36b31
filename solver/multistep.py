"""The classical solvers, each beside its equation.

In λ = log(α / σ) the probability-flow ODE has the exact solutions (Lu et al. 2022b, arXiv 2211.01095, eq. 8
and 2022, arXiv 2206.00927, eq. 3.4; from λ[i] to λ[i+1], h[i] = λ[i+1] - λ[i])

    in x0:  x[i+1] = σ[i+1]/σ[i] · x[i] + σ[i+1] · ∫ e^λ · x0(λ) dλ
    in ε:   x[i+1] = α[i+1]/α[i] · x[i] - α[i+1] · ∫ e^(-λ) · ε(λ) dλ

A multistep method replaces x0(λ) or ε(λ) by a weighted mean of the predictions it has,

    x[i+1] = A[i] · x[i] + B[i] · Σ_k w[i, k] · q[i-k],    Σ_k w[i, k] = 1,

with A and B of `transport`, which make the step exact where q does not change. So a method is its weights:
each function below takes `lam` [N + 1], rising, whose last entry may be ∞ (σ = 0), and returns them, [N, m]
float64, newest prediction first, zero where there is none yet. A step to σ = 0 lands on the newest x0
(w = 1, 0, …), since the interpolated polynomials have no limit there.

At zero terminal SNR (Lin et al. 2024, arXiv 2305.08891) the first level is pure noise, λ = -∞, where 2⁻¹²
stands for α = 0, as in diffusers. Rows in x0 are well-conditioned there. Rows in ε are not: A and B go to ∞
against each other, and ε says nothing about the picture. So where the network predicts x0 or v, a method in ε
begins with DDIM's step in x0, which is the limit of its own, and starts afresh from the second level
(`begins_at_noise`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from solver.grids import TimeGrid
from solver.plan import Mixture, Plan, Tables, as_mixture, combination, convert_prediction
from solver.schedule import NoiseSchedule

# Weights of order 1 to 4 for equal steps (Hairer, Nørsett & Wanner, Solving ODEs I, III.1).
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)

# Levels below this λ count as pure noise. Zero terminal SNR stands at -8.3; Stable Diffusion ends at -2.7.
PURE_NOISE = -6.0


def ddim(lam: Tensor) -> Tensor:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 with σ_t = 0), of order 1: x0 stays what it was.

    x[i+1] = α[i+1] · x0[i] + σ[i+1] · ε[i]
    """
    return lam.new_ones(len(lam) - 1, 1)


def euler(lam: Tensor) -> Tensor:
    """Euler's method, of order 1 (Karras et al. 2022, arXiv 2206.00364, alg. 1 without its correction).

    With y = x / α, n = σ / α:  y[i+1] = y[i] + (n[i+1] - n[i]) · ε[i], which is DDIM again;
    on a flow                   x[i+1] = x[i] + (σ[i+1] - σ[i]) · v[i].
    """
    return ddim(lam)


def ab4(lam: Tensor) -> Tensor:
    """Adams-Bashforth of order 4 with weights of equal steps (iPNDM, Zhang & Chen 2023, arXiv 2204.13902).

    y[i+1] = y[i] + (n[i+1] - n[i]) · (55 ε[i] - 59 ε[i-1] + 37 ε[i-2] - 9 ε[i-3]) / 24;
    on a flow the same with x, σ and v.
    The order is 4 only where the steps in n (σ) are equal, as on an unshifted flow; elsewhere it is 1.
    """
    rows = [ADAMS_BASHFORTH[min(i, 3)] for i in range(len(lam) - 1)]
    return torch.stack([pad(lam.new_tensor(row), (0, 4 - len(row))) for row in rows])


def dpm2m(lam: Tensor) -> Tensor:
    """DPM-Solver-2M in ε and DPM-Solver++ 2M in x0, of order 2 (Lu et al. 2022b, arXiv 2211.01095, alg. 2).

    D = (1 + 1/2r) · q[i] - 1/2r · q[i-1],    r = h[i-1] / h[i]
    Below 15 steps the last row is of order 1, as in diffusers, also where it ends above σ = 0.
    """
    half = _ratio(lam) / 2
    if len(half) < 15:
        half[-1] = 0
    return torch.stack([1 + half, -half], dim=1)


def dpmpp3m(lam: Tensor) -> Tensor:
    """DPM-Solver++ 3M as published and in diffusers, of order 2 despite its name; of order 3 is `unip3`.

    With r0 = h[i-1]/h[i], r1 = h[i-2]/h[i] and E0 = (q[i] - q[i-1])/r0, E1 = (q[i-1] - q[i-2])/r1:
        D2 = (E0 - E1) / (r0 + r1),    D1 = E0 + r0 · D2,
        D  = q[i] + φ2/φ1 · D1 + φ3/φ1 · D2,    φ1 = 1 - e^(-h), φ2 = 1 - φ1/h, φ3 = 1/2 - φ2/h
    (Lu et al. 2022b, arXiv 2211.01095, sec. 4.2 with k = 3). A second derivative is 2 · D2, so the last term
    has half the weight that order 3 needs. The last row but one is 2M's below 15 steps, as in diffusers.
    """
    weights, h = pad(dpm2m(lam), (0, 1)), lam.diff()
    for i in range(2, len(h) - (2 if len(h) < 15 else 1)):
        r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
        E0, E1 = lam.new_tensor([1, -1, 0]) / r0, lam.new_tensor([0, 1, -1]) / r1
        D2 = (E0 - E1) / (r0 + r1)
        D1 = E0 + r0 * D2
        phi1 = -torch.expm1(-h[i])
        phi2 = 1 - phi1 / h[i]
        phi3 = 1 / 2 - phi2 / h[i]
        weights[i] = lam.new_tensor([1, 0, 0]) + phi2 / phi1 * D1 + phi3 / phi1 * D2
    return weights


def unip3(lam: Tensor) -> Tensor:
    """UniP-3 in x0 (Zhao et al. 2023, arXiv 2302.04867, alg. 2), of order 3: exponential Adams-Bashforth.

    D = ∫ e^λ · P(λ) dλ / ∫ e^λ dλ,  P the parabola through x0 at λ[i], λ[i-1], λ[i-2],
    which is DPM-Solver++ 3M with 2 · D2.
    The second row and the last but one are 2M's, as in diffusers' UniPC of order 3 without its corrector.
    """
    weights = pad(dpm2m(lam), (0, 1))
    for i in range(2, len(lam) - 3):
        weights[i] = _exponential(lam, i, [i, i - 1, i - 2], 1.0)
    return weights


def deis(lam: Tensor) -> Tensor:
    """DEIS tAB in log(σ / α), of order 2 (Zhang & Chen 2023, arXiv 2204.13902, eq. 15, as in diffusers).

    D = ∫ e^(-λ) · P(λ) dλ / ∫ e^(-λ) dλ,  P the line through ε at λ[i], λ[i-1]
    """
    weights = pad(ddim(lam), (0, 1))
    for i in range(1, len(lam) - 2):
        weights[i] = _exponential(lam, i, [i, i - 1], -1.0)
    return weights


def unipc(lam: Tensor) -> Tensor:
    """UniPC-2 in x0, B(h) = e^h - 1 (Zhao et al. 2023, arXiv 2302.04867, alg. 1): order 2, corrected to 3.

    The predictor UniP-2 is DPM-Solver++ 2M. Once x0[i] is known, UniC-2 takes the step that led there again:
        w' = ∫ e^λ · P(λ) dλ / ∫ e^λ dλ over step i-1,  P the parabola through x0 at λ[i], λ[i-1], λ[i-2]
    (in the first step x0[1] and x0[0] in halves). Moving x[i] by B[i-1] · Σ_k (w'[k] - w[i-1, k-1]) · x0[i-k]
    moves x[i+1] by A[i] times that, and so a corrector is one more column of the row.
    """
    return _corrected(dpm2m(lam), lam, 2)


def unipc3(lam: Tensor) -> Tensor:
    """UniPC-3 in x0, B(h) = e^h - 1 (Zhao et al. 2023, arXiv 2302.04867, alg. 1): order 3, corrected to 4.

    As `unipc`, with the predictor UniP-3 and the corrector UniC-3, whose cubic passes through four x0.
    """
    return _corrected(unip3(lam), lam, 3)


def _corrected(predictor: Tensor, lam: Tensor, order: int) -> Tensor:
    """Add the corrector UniC of an order to the rows [N, order] of a predictor; returns [N, order + 1]."""
    weights, h = pad(predictor, (0, 1)), lam.diff()
    for i in range(1, len(h)):
        p = min(order, i, len(h) - i + 1)  # of the step before, lower at the start and the end
        if p == 1:
            corrector = lam.new_tensor([1 / 2, 1 / 2])
        else:
            corrector = _exponential(lam, i - 1, list(range(i, i - p - 1, -1)), 1.0)
        carried = -torch.expm1(-h[i - 1]) / torch.expm1(h[i])  # A[i] · B[i-1] / B[i]
        weights[i] += carried * (pad(corrector, (0, order - p)) - pad(predictor[i - 1], (1, 0)))
    return weights


def variable_adams_bashforth(s: Tensor, order: int) -> Tensor:
    """Adams-Bashforth for unequal steps, of any order (Hairer, Nørsett & Wanner, Solving ODEs I, III.5).

    D = ∫ P(s) ds / (s[i+1] - s[i]),  P through q at s[i], s[i-1], …, which is
    exact for degrees below min(i + 1, order).

    Args:
        s: [N + 1], all different: σ / α where ε is combined, σ for a velocity.
        order: m, at least 1.
    """
    rows = []
    for i, h in enumerate(s.diff()):
        u = (s[max(i - order + 1, 0) : i + 1].flip(0) - s[i]) / h
        row = _quadrature(u, 1 / torch.arange(1, len(u) + 1, dtype=s.dtype))
        rows.append(pad(row, (0, order - len(u))))
    return torch.stack(rows)


def _ratio(lam: Tensor) -> Tensor:
    """h[i] / h[i-1], zero for the first step and for one to σ = 0."""
    h = lam.diff()
    ratio = pad(h[1:] / h[:-1], (1, 0))
    return torch.where(ratio.isfinite(), ratio, 0.0)


def _exponential(lam: Tensor, i: int, nodes: list[int], sign: float) -> Tensor:
    """w with Σ_k w[k] · P(λ[nodes[k]]) = ∫ e^(±λ) P dλ / ∫ e^(±λ) dλ over step i.

    Exact for polynomials P of degree below len(nodes).

    In u = (λ - λ[i]) / h and c = ±h the moments ∫ e^(cu) u^j du / ∫ e^(cu) du over [0, 1] are, by parts,
    μ[0] = 1 and μ[j] = 1 / (1 - e^(-c)) - j/c · μ[j-1].
    """
    h = lam[i + 1] - lam[i]
    c, moments = sign * h, [lam.new_ones(())]
    for j in range(1, len(nodes)):
        moments.append(-1 / torch.expm1(-c) - j / c * moments[-1])
    return _quadrature((lam[nodes] - lam[i]) / h, torch.stack(moments))


def _quadrature(u: Tensor, moments: Tensor) -> Tensor:
    """w with Σ_k w[k] · u[k]^j = moments[j]."""
    return torch.linalg.solve(torch.vander(u, increasing=True).T, moments)


class Method(NamedTuple):
    """Weights from λ, and the prediction type that they combine; on a flow another, or None if impossible."""

    weights: Callable[[Tensor], Tensor]
    combines: str
    on_flow: str | None


METHODS = {
    "ddim": Method(ddim, "sample", "sample"),
    "dpm2m": Method(dpm2m, "epsilon", None),
    "dpm++2m": Method(dpm2m, "sample", "sample"),
    "dpm++3m": Method(dpmpp3m, "sample", "sample"),
    "unip3": Method(unip3, "sample", "sample"),
    "unipc": Method(unipc, "sample", "sample"),
    "unipc3": Method(unipc3, "sample", "sample"),
    "deis": Method(deis, "epsilon", None),
    "ab4": Method(ab4, "epsilon", "flow_prediction"),
    "euler": Method(euler, "epsilon", "flow_prediction"),
}


def transport(combines: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return (A, B) [..., N] with x[i+1] = A[i] · x[i] + B[i] · q[i], exact while q stays the same.

    With x[i] = α[i]·x0 + σ[i]·ε and q = p·x0 + r·ε this is x[i+1] as a combination of x[i] and q:
    in ε A = α[i+1]/α[i], B = α[i+1] · (n[i+1] - n[i]) with n = σ/α; in x0 A = σ[i+1]/σ[i],
    B = α[i+1] · (1 - e^(-h)); for a flow's velocity A = 1, B = σ[i+1] - σ[i].

    Args:
        combines: epsilon, sample or flow_prediction, which stay the same along a straight path.
        alpha, sigma: [..., N + 1].
    """
    if combines not in ("epsilon", "sample", "flow_prediction"):
        raise ValueError(f"A multistep method combines epsilon, sample or flow_prediction, not {combines!r}.")
    q: Mixture = as_mixture(combines, 1.0, 0.0)
    return combination((alpha[..., 1:], sigma[..., 1:]), (alpha[..., :-1], sigma[..., :-1]), q)


def begins_at_noise(combines: str, schedule: NoiseSchedule, lam: Tensor) -> bool:
    """Whether a method in ε starts where ε says nothing about the picture, but the network's output does."""
    if schedule.is_flow or combines != "epsilon" or schedule.prediction_type == "epsilon":
        return False
    return bool(lam[..., 0].max() < PURE_NOISE)


def starting_weights(
    weights: Callable[[Tensor], Tensor], combines: str, schedule: NoiseSchedule, lam: Tensor
) -> Tensor:
    """Return a method's weights [N, m], which start afresh from the second level where the first is noise."""
    if not begins_at_noise(combines, schedule, lam):
        return weights(lam)
    if len(lam) == 2:
        return ddim(lam)
    rest = weights(lam[1:])
    return torch.cat([pad(ddim(lam[:2]), (0, rest.shape[1] - 1)), rest])


def multistep(weights: Tensor, combines: str, schedule: NoiseSchedule, grid: TimeGrid) -> Tables:
    """Make the tables x[i+1] = A[i] · x[i] + B[i] · Σ_k weights[i, k] · q[i-k] from their weights.

    Weights that sum to one make them consistent: data and noise that never change are followed exactly.
    Differentiable in the weights and in the grid.

    Args:
        weights: [B, N, m], newest prediction first, zero where there is none yet.
        combines: the prediction type of q, see `transport`.
        grid: timestep and lam are [B, N] and [B, N + 1], or those of one grid for all.

    Raises:
        ValueError: ε on a flow, which does not know it at its start.
    """
    if combines == "epsilon" and schedule.is_flow:
        raise ValueError("A flow does not know the noise at its start; combine x0 or a velocity.")
    alpha, sigma = (level.expand(len(weights), -1) for level in schedule.levels(grid.lam))
    A, B = transport(combines, alpha, sigma)
    c, d = convert_prediction(schedule.prediction_type, combines, alpha[:, :-1], sigma[:, :-1])
    if begins_at_noise(combines, schedule, grid.lam):
        first = torch.arange(A.shape[1], device=A.device) == 0
        in_x0 = (
            *transport("sample", alpha, sigma),
            *convert_prediction(schedule.prediction_type, "sample", alpha[:, :-1], sigma[:, :-1]),
        )
        A, B, c, d = (torch.where(first, *pair) for pair in zip(in_x0, (A, B, c, d), strict=True))
        weights = _without_first(weights)
    t = grid.timestep.expand_as(A)
    b = B[..., None] * weights
    A, c, d = (torch.as_tensor(v).to(A).expand_as(A) for v in (A, c, d))
    told = schedule.levels(schedule.lam(t))
    return Tables(schedule.prediction_type, t, alpha, sigma, A, b, c, d, torch.ones_like(t), *told)


def _without_first(weights: Tensor) -> Tensor:
    """Move the weight of q[0] in all later rows to q[1]; B[0]'s row is left alone."""
    rows, columns = torch.arange(weights.shape[-2]), torch.arange(weights.shape[-1])
    first = ((columns == rows[:, None]) & (rows[:, None] > 0)).to(weights.device)
    return weights * ~first + pad((weights * first)[..., 1:], (0, 1))


def heun(schedule: NoiseSchedule, grid: TimeGrid) -> Tables:
    """Heun's method, of order 2 with 2N - 1 evaluations (Karras et al. 2022, arXiv 2206.00364, alg. 1).

    Predict y' = y[i] + Δn · ε[i], evaluate ε' there, correct y[i+1] = y' + Δn/2 · (ε' - ε[i]); the last step,
    to σ = 0, is Euler's. On a flow the same with x, σ and the velocity. From zero terminal SNR the first step
    is not corrected, so it takes 2N - 2 evaluations.
    """
    N = len(grid.timestep)
    combines = "flow_prediction" if schedule.is_flow else "epsilon"
    first = int(begins_at_noise(combines, schedule, grid.lam))  # a step from pure noise is not corrected
    at = torch.arange(N).repeat_interleave(2)[
        1 + first :
    ]  # 0, 1, 1, 2, 2, …: predicted at, then corrected at
    at = torch.cat([at.new_zeros(first), at[first:]])
    twice = TimeGrid(grid.timestep[at], grid.lam[[*at.tolist(), N]])
    tables = multistep(euler(twice.lam)[None], combines, schedule, twice)
    b = pad(tables.b, (0, 1))
    b[:, 1 + first :: 2] = b[:, first:-1:2, :1] * b.new_tensor([1 / 2, -1 / 2])
    return replace(tables, b=b)


def grid_of(plan: Plan) -> TimeGrid:
    """Return the grid on which a plan evaluates, for plans with one evaluation a step."""
    alpha, sigma = (torch.tensor(level, dtype=torch.float64) for level in (plan.alpha, plan.sigma))
    return TimeGrid(torch.tensor(plan.timestep, dtype=torch.float64), (alpha / sigma).log())


def classical_plan(solver: str, schedule: NoiseSchedule, grid: TimeGrid) -> Plan:
    """Make the plan of a classical solver on any grid.

    Raises:
        ValueError: a solver that combines ε on a flow, which does not determine it at σ = 1.
    """
    if solver == "heun":
        return heun(schedule, grid).plan(0, solver)
    method = METHODS[solver]
    combines = method.on_flow if schedule.is_flow else method.combines
    if combines is None:
        usable = ", ".join([*(name for name, other in METHODS.items() if other.on_flow), "heun"])
        raise ValueError(f"{solver} combines noise, which a flow does not know at its start; use {usable}.")
    weights = starting_weights(method.weights, combines, schedule, grid.lam)
    return multistep(weights[None], combines, schedule, grid).plan(0, solver)

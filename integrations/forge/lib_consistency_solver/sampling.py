"""ConsistencySolver as a sampler of k-diffusion's kind, for k-diffusion, ComfyUI, A1111 and Forge.

One file that needs PyTorch and tqdm: copy it under a name such as `consistency_solver.py`.

    sigmas = get_sigmas(6, model.sigmas)
    latents = sample_consistency(model, noise * sigmas[0], sigmas, extra_args={"cond": cond})

Samplers of this kind keep a state x0 + σ · noise (on a flow (1 - σ) · x0 + σ · noise), tell the model a noise
level σ, and get the predicted picture back. A plan (docs/plan-format.md) is a table of numbers that combines
the state and the outputs; `read_plans` reads learned ones. Levels without a plan get the rows of UniPC.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import trange

PLAN, PLANS, VERSION = "consistency-solver plan", "consistency-solver plans", 1

# λ is infinite at σ = 1 on a flow, and at zero signal; these are the noisiest levels of a run.
FLOW_SIGMA_MAX = 1 - 1e-6
SIGMA_MAX = 1e4

# How far a level may lie from a plan's, as a share of it, and still be the same.
SAME = 2e-3

Level = tuple[float, float]
"""(alpha, sigma) of alpha · x0 + sigma · noise."""


class Plan(NamedTuple):
    """The table of one solver at one number of steps; docs/plan-format.md explains the entries.

    Attributes:
        solver, prediction_type, a, b, c, d: as in the file.
        levels: N + 1, (alpha, sigma) of the state.
        told: N, (alpha, sigma) of what the model is told.
    """

    solver: str
    prediction_type: str
    levels: tuple[Level, ...]
    told: tuple[Level, ...]
    a: tuple[float, ...]
    b: tuple[tuple[float, ...], ...]
    c: tuple[float, ...]
    d: tuple[float, ...]

    @property
    def flow(self) -> bool:
        """Whether levels are 1 - σ and σ, rather than on a circle."""
        return self.prediction_type == "flow_prediction"

    @property
    def sigmas(self) -> list[float]:
        """The state's N + 1 noise levels, as samplers of this kind mean them."""
        return [_k_sigma(level, self.flow) for level in self.levels]


class PlanFile(NamedTuple):
    """Plans from a file, at most one for each number of steps, and what the file says about them."""

    name: str
    about: str
    plans: tuple[Plan, ...]


def read_plans(path: str | Path) -> PlanFile:
    """Read a file of plans, or of a single one.

    Raises:
        OSError: no such file.
        ValueError: another kind of file, a newer version, or a plan that can't be followed here.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}.") from error
    if not isinstance(data, dict) or data.get("format", PLAN) not in (PLAN, PLANS):
        raise ValueError(f"{path.name} holds no plans.")
    several = data.get("format") == PLANS
    entries = data.get("plans", []) if several else [data]
    for entry in (data, *entries):
        if entry.get("version", VERSION) != VERSION:
            raise ValueError(
                f"{path.name} has version {entry['version']} of its format; update this sampler."
            )
    try:
        plans = tuple(_plan(entry) for entry in entries)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path.name} holds no whole plan: {error} is missing or of a wrong kind."
        ) from error
    return PlanFile(data.get("name", path.stem), data.get("about", ""), plans)


def _plan(entry: dict[str, Any]) -> Plan:
    if {entry.get("init_noise_scale", 1.0), *entry.get("input_scale", ())} != {1.0}:
        raise ValueError(
            "A plan keeps its state in another scaling than its network's, which is not read here."
        )
    levels = tuple(zip(entry["alpha"], entry["sigma"], strict=True))
    # Plans of before told levels were written are told those of their state.
    told_alpha = entry.get("told_alpha") or entry["alpha"][:-1]
    told_sigma = entry.get("told_sigma") or entry["sigma"][:-1]
    told = zip(told_alpha, told_sigma, strict=True)
    rows = {name: tuple(entry[name]) for name in "acd"}
    b = tuple(map(tuple, entry["b"]))
    return Plan(entry["solver"], entry["prediction_type"], levels, tuple(told), b=b, **rows)


def get_sigmas(
    steps: int,
    table: Sequence[float] | Tensor,
    *,
    flow: bool = False,
    plans: Sequence[Plan] = (),
    strength: float = 1.0,
    device: Any = "cpu",
) -> Tensor:
    """The noise levels of a run: a plan's for this number of steps, else timesteps spaced trailing.

    Args:
        steps: N, of the whole way from pure noise.
        table: the model's noise levels, rising, one for each training timestep.
        flow: whether the model is a flow.
        plans: learned ones.
        strength: below 1 for image to image; levels then start there, and N · strength steps remain.

    Returns:
        float32, N + 1 levels (with a strength ceil(N · strength) + 1), the last the end's.

    Raises:
        ValueError: a plan that was learned for another noise schedule; more steps than timesteps.
    """
    table = [float(sigma) for sigma in table]
    found = [plan for plan in plans if len(plan.a) == steps]
    if found and strength == 1:
        sigmas = found[0].sigmas
        if found[0].flow != flow or not _same(sigmas[0], min(table[-1], SIGMA_MAX)):
            kind = "a flow" if found[0].flow else "a model"
            raise ValueError(
                f"The plan for {steps} steps was learned for {kind} whose noise starts at {sigmas[0]:.4g}, "
                f"and this model's starts at {table[-1]:.4g}; choose plans of this model, or none."
            )
        # Programs scale the first noise by whether this is their model's highest level, to the last bits.
        sigmas = [table[-1], *sigmas[1:]]
    else:
        sigmas = [*_trailing(steps, table, flow, strength), 0.0]
    return torch.tensor(sigmas, dtype=torch.float32, device=device)


def _trailing(steps: int, table: Sequence[float], flow: bool, strength: float) -> list[float]:
    T = len(table)
    if not 1 <= steps <= T or not 1 / T <= strength <= 1:
        raise ValueError(f"Choose 1 to {T} steps and a strength from {1 / T:g} to 1.")
    N = max(1, math.ceil(steps * strength - 1e-6))
    if not flow:
        # The difference as numpy's arange has it, so that halves round as they do there.
        start = T * strength
        step = (start - start / N) - start
        return [table[round(start + k * step) - 1] for k in range(N)]
    sigmas = []
    for k in range(N, 0, -1):
        u = strength * k / N
        # σ = s · u / (1 + (s - 1) · u) with a shift s, which the nearest timestep of the table gives.
        near = min(max(round(u * T), 1), T - 1)
        v, level = near / T, table[near - 1]
        shift = level / (1 - level) * (1 - v) / v
        sigmas.append(shift * u / (1 + (shift - 1) * u))
    return sigmas


@torch.no_grad()
def sample_consistency(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    *,
    plans: Sequence[Plan] = (),
    flow: bool = False,
) -> Tensor:
    """Sample along these noise levels: with the plan that has them, else with UniPC's rows.

    Args:
        model: (x, sigma [B], **extra_args) → predicted pictures, guided.
        x: [B, ...], the state at the first level: noise · sigmas[0], or noise added to pictures.
        sigmas: N + 1 falling levels. The last ones of a plan, for image to image, get UniPC's rows at them.
        extra_args, callback, disable: as in k-diffusion's samplers.
        plans: learned ones, see `read_plans`.
        flow: whether the model is a flow, with σ from 1 to 0.

    Returns:
        [B, ...] in the type of x, at the last level.

    Raises:
        ValueError: levels that do not fall.
    """
    extra_args = extra_args or {}
    levels = [float(sigma) for sigma in sigmas]
    plan = plan_for(levels, plans, flow)
    ones = x.new_ones([len(x)])
    state = x.float() * _scale(levels[0], flow)  # alpha · x0 + sigma · noise
    history: list[Tensor] = []
    for i in trange(len(plan.a), disable=disable):
        told = plan.told[i]
        sigma = _k_sigma(told, flow)
        scale = _scale(sigma, flow)
        denoised = model((state / scale).to(x.dtype), sigma * ones, **extra_args).float()
        if callback is not None:
            here = {"x": state / _scale(levels[i], flow), "denoised": denoised}
            callback({**here, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i]})
        p, r = _to_x0(plan.prediction_type, told)
        output = (denoised - p * state) / r  # what the network put out, guided
        history.insert(0, plan.c[i] * state + plan.d[i] * output)
        state = plan.a[i] * state
        for weight, q in zip(plan.b[i], history, strict=False):
            state = state + weight * q
    return (state / _scale(levels[-1], flow)).to(x.dtype)


def plan_for(sigmas: Sequence[float], plans: Sequence[Plan], flow: bool) -> Plan:
    """The plan whose levels these are; else UniPC's at the last levels of one, or at these alone.

    Raises:
        ValueError: levels that do not fall.
    """
    if len(sigmas) < 2 or any(after >= before for before, after in pairwise(sigmas)):
        raise ValueError(f"The noise levels must fall: {[round(sigma, 4) for sigma in sigmas]}.")
    matching = []
    for plan in plans:
        skipped = len(plan.a) + 1 - len(sigmas)
        if plan.flow == flow and skipped >= 0 and all(map(_same, plan.sigmas[skipped:], sigmas)):
            matching.append((skipped, plan))
    if not matching:
        levels = [_level(sigma, flow) for sigma in sigmas]
        return unipc_plan(levels, "sample" if not flow else "flow_prediction")
    skipped, plan = min(matching, key=lambda match: match[0])
    if not skipped:
        return plan
    return unipc_plan(plan.levels[skipped:], plan.prediction_type, plan.told[skipped:])


def unipc_plan(levels: Sequence[Level], prediction_type: str, told: Sequence[Level] | None = None) -> Plan:
    """UniPC of order 2 with its corrector, in x0 (Zhao et al. 2023, arXiv 2302.04867, alg. 1, e^h - 1).

    With λ = log(α/σ), h[i] = λ[i+1] - λ[i] and B[i] = α[i+1] · (1 - e^(-h[i])) a step is

        x[i+1] = σ[i+1]/σ[i] · x[i] + B[i] · Σ_k w[i][k] · x0[i-k]

    The predictor has w[i] = (1 + h[i]/2h[i-1], -h[i]/2h[i-1]). Once x0 at the end of a step is known, the
    corrector takes the step again with the parabola through three x0. This moves the next state by a
    combination of the same x0, so it is part of the next row.
    """
    lam = [math.log(alpha / sigma) if sigma else math.inf for alpha, sigma in levels]
    h = [after - before for before, after in pairwise(lam)]
    N = len(h)
    a, b = [], []
    for i in range(N):
        (_, sigma), (alpha_next, sigma_next) = levels[i], levels[i + 1]
        row = [*_predictor(h, i), 0.0]
        if i and math.isfinite(h[i]):
            carried = -math.expm1(-h[i - 1]) / math.expm1(h[i])
            change = (w - v for w, v in zip(_corrector(h, i - 1), (0.0, *_predictor(h, i - 1)), strict=True))
            row = [w + carried * v for w, v in zip(row, change, strict=True)]
        a.append(sigma_next / sigma)
        b.append(tuple(-alpha_next * math.expm1(-h[i]) * w for w in row[: i + 1]))
    c, d = zip(*(_to_x0(prediction_type, level) for level in levels[:-1]), strict=True)
    levels = tuple(levels)
    return Plan("unipc", prediction_type, levels, tuple(told or levels[:-1]), tuple(a), tuple(b), c, d)


def _predictor(h: Sequence[float], i: int) -> tuple[float, float]:
    half = h[i] / h[i - 1] / 2 if i and math.isfinite(h[i]) else 0.0
    return 1 + half, -half


def _corrector(h: Sequence[float], i: int) -> tuple[float, float, float]:
    """Weights of x0 at the end, at the start and before step i; exact for e^λ times a parabola."""
    if i == 0:
        return 0.5, 0.5, 0.0
    # In u = (λ - λ[i]) / h[i] the three lie at 1, 0 and -r, and e^λ has these moments on [0, 1].
    r = h[i - 1] / h[i]
    first = -1 / math.expm1(-h[i]) - 1 / h[i]
    second = -1 / math.expm1(-h[i]) - 2 / h[i] * first
    newest, oldest = (second + r * first) / (1 + r), (second - first) / (r * (1 + r))
    return newest, 1 - newest - oldest, oldest


def _level(sigma: float, flow: bool) -> Level:
    if flow:
        sigma = min(sigma, FLOW_SIGMA_MAX)
        return 1 - sigma, sigma
    sigma = min(sigma, SIGMA_MAX)
    return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)


def _scale(sigma: float, flow: bool) -> float:
    """What turns a state of this kind, x0 + σ · noise, into alpha · x0 + sigma · noise."""
    return 1.0 if flow else _level(sigma, flow)[0]


def _k_sigma(level: Level, flow: bool) -> float:
    alpha, sigma = level
    return sigma if flow else min(sigma / alpha if alpha else math.inf, SIGMA_MAX)


def _to_x0(prediction_type: str, level: Level) -> Level:
    """(p, r) with x0 = p · x + r · output at this level."""
    alpha, sigma = level
    if prediction_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction_type == "v_prediction":
        return alpha, -sigma
    if prediction_type == "flow_prediction":
        return 1.0, -sigma
    return 0.0, 1.0


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= SAME * max(abs(one), abs(other))

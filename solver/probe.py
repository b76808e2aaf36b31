"""Reading a diffusers scheduler's plan off by running it once on unit vectors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from solver.plan import Plan, as_mixture, convert_prediction
from solver.schedule import NoiseSchedule

LINEAR_TOLERANCE = 1e-5


def read_plan(
    scheduler: Any, steps: int, *, read_as: str = "sample", solver: str | None = None, **step_options: Any
) -> Plan:
    """The plan that a diffusers scheduler follows for a number of steps, on the scheduler's own time grid.

    Args:
        scheduler: any deterministic, linear scheduler of a variance-preserving model or a flow; not touched.
        steps: as for its `set_timesteps`.
        read_as: what the rows combine: x0 ("sample", as DPM-Solver++ and UniPC do), ε ("epsilon", as DDIM,
            DPM-Solver, DEIS and Heun do) or a velocity ("flow_prediction"). Any choice gives the same
            solver; the one the solver was made in has the fewest columns.
        solver: the plan's name; the scheduler's class by default.
        step_options: passed on to every `step`, `eta` for instance.

    Raises:
        ValueError: the scheduler draws noise, or is not linear in the network's outputs (clipping,
            thresholding); found by comparing the plan with the scheduler on random data.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    schedule = NoiseSchedule.from_config(scheduler)
    timestep = [float(t) for t in scheduler.timesteps]
    lam = schedule.lam(timestep)
    if hasattr(scheduler, "sigmas"):
        n = scheduler.sigmas[: len(timestep)].double()  # σ on a flow, σ / α otherwise
        lam = torch.log1p(-n) - n.log() if schedule.is_flow else -n.log()
    levels = [(float(v), float(w)) for v, w in zip(*schedule.levels(lam), strict=True)]
    prediction_type = schedule.prediction_type
    readings = [convert_prediction(prediction_type, read_as, *level) for level in levels]
    a, b, scale = _probe(scheduler, readings, **step_options)
    alpha, sigma = ([v / s for v, s in zip(level, scale, strict=True)] for level in zip(*levels, strict=True))

    told_alpha, told_sigma = (tuple(level.tolist()) for level in schedule.levels(schedule.lam(timestep)))

    # On data and noise that never change, q is (p, r) for (x0, ε); the last row says where that ends.
    p, r = as_mixture(read_as, 1.0, 0.0)
    ends = (a[-1] * level[-1] + sum(b[-1]) * q for level, q in ((alpha, p), (sigma, r)))
    last_alpha, last_sigma = (end if abs(end) > LINEAR_TOLERANCE else 0.0 for end in ends)
    return Plan(
        solver=solver or type(scheduler).__name__,
        prediction_type=prediction_type,
        timestep=tuple(timestep),
        alpha=(*alpha, last_alpha),
        sigma=(*sigma, last_sigma),
        a=tuple(a),
        b=tuple(b),
        c=tuple(c * s for (c, _), s in zip(readings, scale, strict=True)),
        d=tuple(d for _, d in readings),
        input_scale=tuple(scale),
        init_noise_scale=float(getattr(scheduler, "init_noise_sigma", 1.0)),
        told_alpha=told_alpha,
        told_sigma=told_sigma,
    )


def _probe(
    scheduler: Any, readings: Sequence[tuple[float, float]], **step_options: Any
) -> tuple[list[float], list[tuple[float, ...]], list[float]]:
    """The rows a, b of a scheduler whose timesteps are set, and its input scales.

    The scheduler runs once on a batch of two. The first element lives in the space spanned by x[0] and the
    q's: x[0] and every q[i] are unit vectors there, so that the sample it returns *is* its dependence on
    them. The second is random, large enough to set off any clipping, and must follow the same rows.

    Args:
        scheduler: fresh from `set_timesteps`; used up.
        readings: for each evaluation (c, d) with q = c · input + d · output, in the network's scaling.

    Raises:
        ValueError: the random element does not follow the rows.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # timesteps may repeat, so steps must be counted, not looked up
    rows = len(readings)
    generator = torch.Generator().manual_seed(0)
    e = torch.eye(rows + 1, dtype=torch.float64)
    q = torch.empty(rows, rows + 1, dtype=torch.float64)
    x = torch.stack([e[0], 1e3 * torch.randn(rows + 1, generator=generator, dtype=torch.float64)])
    a: list[float] = []
    b: list[tuple[float, ...]] = []
    scale: list[float] = []
    for i, (c, d) in enumerate(readings):
        t = scheduler.timesteps[i]
        scale.append(_input_scale(scheduler, t))
        q[i] = 1e3 * torch.randn(rows + 1, generator=generator, dtype=torch.float64)
        output = (torch.stack([e[i + 1], q[i]]) - c * scale[i] * x) / d
        step = scheduler.step(output[:, None], t, x[:, None], return_dict=False, **step_options)
        x_next = step[0][:, 0].double()

        ratio = float(x_next[0, 0] / x[0, 0]) if x_next[0, 0] else 0.0
        weights = x_next[0, 1 : i + 2] - ratio * x[0, 1 : i + 2]
        weights[weights.abs() < 1e-6 * x_next[0].abs().max()] = 0  # the scheduler's rounding, not its rows
        used = weights.nonzero()
        oldest = int(used[0]) if len(used) else i + 1
        follows = ratio * x[1] + weights[oldest:] @ q[oldest : i + 1]
        off = (x_next[1] - follows).abs().max() / torch.maximum(x[1].abs().max(), q[i].abs().max())
        if not off <= LINEAR_TOLERANCE:
            raise ValueError(
                f"{type(scheduler).__name__} is not a linear function of the network's outputs at step {i}, "
                "so no plan describes it; switch off clipping (clip_sample), thresholding and added noise "
                "(eta, ancestral or sde variants)."
            )
        a.append(ratio)
        b.append(tuple(weights[oldest:].flip(0).tolist()))
        x = x_next
    return a, b, scale


def _input_scale(scheduler: Any, t: torch.Tensor) -> float:
    one = torch.ones((), dtype=torch.float64)
    return float(scheduler.scale_model_input(one, t)) if hasattr(scheduler, "scale_model_input") else 1.0

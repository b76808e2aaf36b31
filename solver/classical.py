"""Plans of the classical solvers of diffusers, on any time grid and all ending at σ = 0."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from solver.grids import TimeGrid
from solver.plan import Plan, reading
from solver.probe import probe
from solver.schedule import NoiseSchedule


@dataclass(frozen=True)
class Source:
    """The diffusers scheduler that a plan is read off, and what its rows combine (see `read_plan`)."""

    scheduler: str
    read_as: str
    options: dict[str, Any] = field(default_factory=dict)


DPM = "DPMSolverMultistepScheduler"
SOURCES = {
    # A first-order DPM-Solver++ is DDIM (Lu et al. 2022b, sec. 4.1), without DDIMScheduler's integer division
    # of the training timesteps, which leaves the grid when the steps do not divide them.
    "ddim": Source(DPM, "sample", {"solver_order": 1}),
    "dpm2m": Source(DPM, "epsilon", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpm++2m": Source(DPM, "sample", {"solver_order": 2}),
    # Of order two, not three: diffusers' second difference lacks a factor of 2.
    "dpm++3m": Source(DPM, "sample", {"solver_order": 3}),
    "unipc": Source("UniPCMultistepScheduler", "sample"),
    "deis": Source("DEISMultistepScheduler", "epsilon"),
    "heun": Source("HeunDiscreteScheduler", "epsilon"),
}
FLOW_SOURCES = {
    **{name: SOURCES[name] for name in ("ddim", "dpm++2m", "dpm++3m", "unipc")},
    "heun": Source("FlowMatchHeunDiscreteScheduler", "flow_prediction"),
}


def probed_plan(solver: str, schedule: NoiseSchedule, grid: TimeGrid) -> Plan:
    """A plan read off a diffusers scheduler that is put on our grid.

    A scheduler's rows depend on nothing but the sigmas it holds, so every solver can be had on every grid.
    The last row lands on x̂0 at σ = 0, as diffusers does with `final_sigmas_type="zero"`; DPM-Solver and DEIS,
    which cannot compute that step themselves (log σ), take the same one. Heun takes 2·steps - 1 evaluations.

    Raises:
        ValueError: a solver that is written in terms of ε, which a flow does not determine at σ = 1.
    """
    sources = FLOW_SOURCES if schedule.is_flow else SOURCES
    if solver not in sources:
        usable = ", ".join(sources)
        raise ValueError(f"{solver} combines noise, which a flow does not know at its start; use {usable}.")
    source = sources[solver]
    t, alpha, sigma = grid
    steps = len(t)
    if solver == "heun":  # at every level but the first one evaluation corrects and one predicts
        twice = np.repeat(np.arange(steps), 2)[1:]
        t, alpha, sigma = t[twice], np.append(alpha[twice], 1.0), np.append(sigma[twice], 0.0)

    # Any end above zero keeps the scheduler's logarithms finite; its last row is replaced below.
    end = np.append(sigma[:-1], sigma[-2] / 2) / (1.0 if schedule.is_flow else np.append(alpha[:-1], 1.0))
    with warnings.catch_warnings():
        # diffusers calls DPM-Solver dated, and its DEIS speaks to NumPy as before 2.0.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler = _scheduler(source, schedule.is_flow)
        scheduler.set_timesteps(steps)
        scheduler.timesteps, scheduler.sigmas = torch.tensor(t), torch.tensor(end)
        a, b, scale = probe(scheduler, [(0.0, 1.0)] * len(t))

    read_as = source.read_as
    kept, weight = reading(read_as, "sample", alpha[-2], sigma[-2])
    levels = list(zip(alpha[:-1], sigma[:-1], strict=True))
    readings = [reading(schedule.prediction_type, read_as, *level) for level in levels]
    return Plan(
        solver=solver,
        prediction_type=schedule.prediction_type,
        timestep=tuple(t),
        alpha=(*(alpha[:-1] / scale), 1.0),
        sigma=(*(sigma[:-1] / scale), 0.0),
        a=(*a[:-1], kept * scale[-1]),
        b=(*b[:-1], (weight,)),
        c=tuple(c * s for (c, _), s in zip(readings, scale, strict=True)),
        d=tuple(d for _, d in readings),
        input_scale=tuple(scale),
        init_noise_scale=1 / scale[0],
    )


def _scheduler(source: Source, flow: bool) -> Any:
    import diffusers

    options = dict(source.options)
    if "FlowMatch" not in source.scheduler:
        # Asked for what it combines, the scheduler leaves outputs as they are; the plan does the reading.
        options |= {"prediction_type": source.read_as} | ({"use_flow_sigmas": True} if flow else {})
    return getattr(diffusers, source.scheduler)(**options)

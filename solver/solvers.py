"""All solvers by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from numbers import Integral
from typing import Any

from solver.consistency import LearnedSolver, untrained_plan
from solver.grids import GRIDS, partial_grid, time_grid
from solver.multistep import classical_plan
from solver.plan import Plan
from solver.schedule import NoiseSchedule

SOLVERS = (
    "consistency",
    "ddim",
    "dpm2m",
    "dpm++2m",
    "dpm++3m",
    "unip3",
    "unipc",
    "unipc3",
    "deis",
    "ab4",
    "heun",
    "euler",
)
MAX_STEPS = 1000

# Scheduler settings that change the picture and that a linear solver cannot follow.
NONLINEAR = ("clip_sample", "thresholding", "stochastic_sampling")


def make_plan(
    solver: str,
    steps: int,
    schedule: Any,
    *,
    grid: str = "trailing",
    learned: LearnedSolver | None = None,
    guidance: float = 3.0,
    strength: float = 1.0,
    to_zero: bool = True,
) -> Plan:
    """Make the plan of a named solver; cached.

    Args:
        solver: one of `SOLVERS`.
        steps: 1 to 1000. Each is one network evaluation, but `heun` takes nearly two for each
            (`Plan.nfe` counts).
        schedule: a `NoiseSchedule`, or anything that `NoiseSchedule.from_config` accepts: a diffusers
            scheduler, its config, or a dict.
        grid: one of `GRIDS`. All plans start at the same timestep and noise level and end at σ = 0, so one
            noise leads all of them to the same picture, more or less precisely. The exception is `leading`,
            which starts elsewhere for each number of steps.
        learned: what was trained for this model; `consistency` alone uses it and has UniPC's rows without.
        guidance: the guidance scale, an input of a learned policy.
        strength: of image-to-image: the share of the way from pure noise that is sampled, on the grid of
            `partial_grid`, from a picture noised to the plan's first level (`SampleState.start`). 1 is all
            of it, from noise alone.
        to_zero: end at σ = 0, or else at the schedule's lowest level, as the paper's targets do. What was
            learned ends where it was trained to.

    Raises:
        ValueError: an unknown name, steps or strength out of range, a strength on another grid than
            `trailing` or above σ = 0, a schedule that cannot be used (says why).
    """
    if solver not in SOLVERS:
        raise ValueError(f"Unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}.")
    if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps must be a whole number from 1 to {MAX_STEPS}, not {steps!r}.")
    if grid not in GRIDS:
        raise ValueError(f"Unknown grid {grid!r}; choose one of {', '.join(GRIDS)}.")
    if not isinstance(schedule, NoiseSchedule):
        refuse_nonlinear(schedule if isinstance(schedule, Mapping) else schedule.config)
        schedule = NoiseSchedule.from_config(schedule)
    if strength != 1 and (grid != "trailing" or not to_zero):
        raise ValueError(f"With a strength the grid is trailing, not {grid}, and ends at σ = 0.")
    if solver == "consistency" and learned is not None:
        return _learned_plan(learned, steps, schedule, grid=grid, guidance=guidance, strength=strength)
    return _make_plan(solver, steps, schedule, grid, strength, to_zero)


def refuse_nonlinear(config: Mapping[str, Any]) -> None:
    """Raise ValueError if a scheduler's config asks for something that no linear solver can do."""
    for setting in NONLINEAR:
        if config.get(setting):
            raise ValueError(
                f"The scheduler config sets {setting}={config[setting]!r}, which linear solvers cannot do; "
                f"set {setting}=False if the model does not need it (latent diffusion models do not)."
            )


_learned_plan = lru_cache(maxsize=64)(LearnedSolver.plan)


@lru_cache(maxsize=256)
def _make_plan(
    solver: str, steps: int, schedule: NoiseSchedule, grid: str, strength: float, to_zero: bool
) -> Plan:
    if strength == 1:
        levels = time_grid(grid, schedule, steps, to_zero=to_zero)
    else:
        levels = partial_grid(schedule, steps, strength)
    if solver == "consistency":
        return untrained_plan(schedule, levels)
    return classical_plan(solver, schedule, levels)

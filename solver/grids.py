"""Time grids: the timesteps at which a solver evaluates the network, and where its ODE stands there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from solver.schedule import NoiseSchedule

Array = NDArray[np.float64]


class TimeGrid(NamedTuple):
    """Where a solver evaluates the network, as float64 tensors.

    Attributes:
        timestep: [..., N], what the network is told.
        lam: [..., N + 1], λ = log(α / σ) where the ODE stands, rising; the last one is ∞ (σ = 0).
    """

    timestep: Tensor
    lam: Tensor


# Whole timesteps from T training timesteps for N steps (Lin et al. 2024, Table 2).
TIMESTEPS: dict[str, Callable[[float, int], Array]] = {
    # [:N] because arange may give one too many; as in diffusers, so that ties round alike
    "trailing": lambda T, N: np.round(np.arange(T, 0, -T / N)[:N]) - 1,
    "linspace": lambda T, N: np.round(np.linspace(0, T - 1, N + 1))[:0:-1].copy(),
    "leading": lambda T, N: np.arange(N, 0, -1.0) * (T // (N + 1)),
}

# The same on a flow, as noise levels before its shift.
FRACTIONS: dict[str, Callable[[float, int], Array]] = {
    "trailing": lambda T, N: np.arange(N, 0, -1) / N,
    "linspace": lambda T, N: np.linspace(1, 1 / T, N),
}

# From noise level v to w: how far along (0 … 1) each step is, and the levels there.
LEVELS: dict[str, tuple[Callable[[int], Array], Callable[[float, float, Array], Array]]] = {
    "karras": (  # Karras et al. 2022, eq. 5, with ρ = 7
        lambda N: np.linspace(0, 1, N),
        lambda v, w, r: (v ** (1 / 7) + r * (w ** (1 / 7) - v ** (1 / 7))) ** 7,
    ),
    "exponential": (lambda N: np.linspace(0, 1, N), lambda v, w, r: v * (w / v) ** r),
    "lu": (lambda N: np.linspace(0, 1, N), lambda v, w, r: v * (w / v) ** r),  # Lu et al. 2022, by diffusers
    "logsnr": (lambda N: np.arange(N) / N, lambda v, w, r: v * (w / v) ** r),  # Lu et al. 2022, sec. 3.1
}

GRIDS = (*TIMESTEPS, *LEVELS)


def time_grid(grid: str, schedule: NoiseSchedule, steps: int, *, to_zero: bool = True) -> TimeGrid:
    """Make the grid of that name with N = steps.

    `trailing` spaces timesteps evenly from pure noise. `linspace` does the same with another rounding.
    `leading` starts below pure noise, the lower the fewer steps, so its plans share no noise with any other.
    The remaining grids space noise levels and round the timesteps told: `karras` and `exponential` space
    σ / α (on a flow σ), `lu` and `logsnr` always σ / α; `logsnr` alone spends no evaluation on the schedule's
    lowest level.

    Args:
        to_zero: end at σ = 0; otherwise at the schedule's lowest level, where a grid that would evaluate the
            network at this level ends instead.

    Raises:
        ValueError: an unknown grid, or one that cannot have so many steps or does not exist for a flow; a
            flow that should not end at σ = 0.
    """
    if grid not in GRIDS:
        raise ValueError(f"Unknown grid {grid!r}; choose one of {', '.join(GRIDS)}.")
    if not to_zero:
        return _ending_lowest(grid, schedule, steps)
    T = schedule.num_train_timesteps
    if grid in LEVELS:
        lam = torch.from_numpy(_spaced_levels(grid, schedule, steps))
        t = schedule.timestep(lam)
        return _ending_clean(t if schedule.is_flow else t.round(), lam)
    if schedule.is_flow:
        if grid not in FRACTIONS:
            raise ValueError(f"A flow has no {grid} grid; choose another, trailing for instance.")
        return _at(T * _stretched(_shifted(FRACTIONS[grid](T, steps), schedule.shift), schedule), schedule)
    if grid == "leading" and steps >= T:
        raise ValueError(f"A leading grid has fewer than {T} steps.")
    return _at(TIMESTEPS[grid](T, steps), schedule)


def partial_grid(schedule: NoiseSchedule, steps: int, strength: float) -> TimeGrid:
    """Make the trailing grid of image-to-image, from the noise level at `strength` to the end.

    The level depends on the strength alone and not on the number of steps, so a preview of few steps and its
    refinement of many start from the same noised picture. (The stock pipelines begin at a row of the whole
    grid, so 6 steps and 40 begin at different levels; where strength · steps is whole, this is their grid.)
    The grid has strength · steps steps, rounded up, so that none is longer than it would be from pure noise.

    Args:
        steps: of the whole way, from pure noise.
        strength: above 0, and at most 1, which is the whole trailing grid.

    Raises:
        ValueError: a strength out of range, or so small that no noise is left.
    """
    T = schedule.num_train_timesteps
    if not 1 / T <= strength <= 1:
        raise ValueError(f"The strength must be from {1 / T:g} to 1, not {strength:g}.")
    made = max(1, math.ceil(steps * strength - 1e-6))
    if schedule.is_flow:
        t = T * _shifted(strength * FRACTIONS["trailing"](T, made), schedule.shift)
    else:
        t = TIMESTEPS["trailing"](strength * T, made)
    return grid_at_timesteps(t, schedule)


def grid_at_timesteps(timesteps: ArrayLike, schedule: NoiseSchedule) -> TimeGrid:
    """Make the grid that evaluates the network at these timesteps, each at its own noise level.

    Args:
        timesteps: falling real numbers.

    Raises:
        ValueError: timesteps that do not fall, or beyond the schedule.
    """
    t = np.asarray(timesteps, dtype=np.float64)
    lowest = 0 if not schedule.is_flow else np.finfo(np.float64).tiny
    highest = schedule.num_train_timesteps - (0 if schedule.is_flow else 1)
    if t.ndim != 1 or t.size == 0 or not np.all(np.diff(t) < 0) or not lowest <= t[-1] <= t[0] <= highest:
        raise ValueError(
            f"Timesteps must fall, from {highest} at most, and stay above the end: {t.tolist()}."
        )
    return _at(t, schedule)


def grid_at_sigmas(sigmas: ArrayLike, schedule: NoiseSchedule) -> TimeGrid:
    """Make the grid through these noise levels, as diffusers means them: σ / α, on a flow σ before its shift.

    Args:
        sigmas: falling; a zero at the end may be given or left out.

    Raises:
        ValueError: levels that do not fall to the end, or on a flow begin above 1.
    """
    n = np.asarray(sigmas, dtype=np.float64)
    n = n[:-1] if n.ndim == 1 and n.size > 1 and n[-1] == 0 else n
    highest = 1.0 if schedule.is_flow else np.inf
    if n.ndim != 1 or n.size == 0 or not np.all(np.diff(n) < 0) or not 0 < n[-1] <= n[0] <= highest:
        raise ValueError(
            f"Sigmas must fall, from {highest:g} at most, and be positive but the last: {n.tolist()}."
        )
    if schedule.is_flow:
        levels = _stretched(_shifted(n, schedule.shift), schedule)
        return grid_at_timesteps(schedule.num_train_timesteps * levels, schedule)
    lam = -torch.from_numpy(n).log()
    return _ending_clean(schedule.timestep(lam), lam)


def _at(timesteps: Array, schedule: NoiseSchedule) -> TimeGrid:
    t = torch.from_numpy(np.minimum(timesteps, schedule.first_timestep))
    return _ending_clean(t, schedule.lam(t))


def _ending_lowest(grid: str, schedule: NoiseSchedule, steps: int) -> TimeGrid:
    if schedule.is_flow:
        raise ValueError("A flow ends at σ = 0: it has no lowest noise level above.")
    lowest = schedule.lam(0.0)[None]
    whole = time_grid(grid, schedule, steps)
    if whole.lam[-2] >= lowest - 1e-9:  # its last evaluation is at the lowest level already
        whole = time_grid(grid, schedule, steps + 1)
    return TimeGrid(whole.timestep[:steps], torch.cat([whole.lam[:steps], lowest]))


def _ending_clean(timestep: Tensor, lam: Tensor) -> TimeGrid:
    return TimeGrid(timestep, torch.cat([lam, lam.new_full((1,), math.inf)]))


def _shifted(u: Any, shift: float) -> Any:
    return shift * u / (1 + (shift - 1) * u)


def _stretched(sigmas: Array, schedule: NoiseSchedule) -> Array:
    """The levels with the last at `shift_terminal`, as FlowMatchEulerDiscreteScheduler stretches them."""
    if not schedule.shift_terminal or sigmas[-1] == 1:
        return sigmas
    return 1 - (1 - sigmas) * (1 - schedule.shift_terminal) / (1 - sigmas[-1])


def _spaced_levels(grid: str, schedule: NoiseSchedule, steps: int) -> Array:
    """λ [steps] between the schedule's two ends."""
    T = schedule.num_train_timesteps
    lowest = T * _shifted(1 / T, schedule.shift) if schedule.is_flow else 0.0
    ends = schedule.lam([schedule.first_timestep, lowest])
    along, between = LEVELS[grid]
    if schedule.is_flow and grid in ("karras", "exponential"):
        v, w = schedule.levels(ends)[1].tolist()
        sigma = between(v, w, along(steps))
        return np.log1p(-sigma) - np.log(sigma)
    v, w = torch.exp(-ends).tolist()
    return -np.log(between(v, w, along(steps)))

"""Time grids: the timesteps at which a solver evaluates the network, and where its ODE stands there."""

from __future__ import annotations

import numpy as np

from solver.schedule import Array, NoiseSchedule

GRIDS = ("trailing",)


def time_grid(grid: str, schedule: NoiseSchedule, steps: int) -> tuple[Array, Array, Array]:
    """Timesteps [steps] and levels alpha, sigma [steps + 1]; the last level is the clean end (1, 0).

    `trailing` (Lin et al. 2024, Table 2) spaces timesteps evenly and starts at pure noise whatever `steps`
    is, which is what lets plans of different lengths share one noise.

    Raises:
        ValueError: an unknown grid.
    """
    if grid not in GRIDS:
        raise ValueError(f"Unknown grid {grid!r}; choose one of {', '.join(GRIDS)}.")
    T = schedule.num_train_timesteps
    u = np.arange(T, 0, -T / steps)[:steps]  # as diffusers does it, so that ties round alike
    if schedule.is_flow:
        u = u / T
        sigma = schedule.shift * u / (1 + (schedule.shift - 1) * u)
        t = np.minimum(T * sigma, schedule.first_timestep)
    else:
        t = np.round(u) - 1
    alpha, sigma = schedule.levels(np.append(schedule.log_snr(t), np.inf))
    return t, alpha, sigma

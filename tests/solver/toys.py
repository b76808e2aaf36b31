"""What the solver tests share: schedules, a toy network, diffusers' own loop, Gaussian data."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from solver import NoiseSchedule

SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
}
FLOW = {"num_train_timesteps": 1000, "shift": 3.0}
# As SDXL finetunes with v-prediction are trained (Lin et al. 2024).
ZERO_SNR = {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
NOISE = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1))


def network(x: Tensor, t: Tensor) -> Tensor:
    """Nonlinear in x, mixing its places, different at every timestep."""
    t = t.reshape(-1, *[1] * (x.dim() - 1)).to(x)
    return torch.tanh(1.3 * x + t / 700) + 0.3 * x.flip(-1) - 0.2 * torch.cos(t / 90)


def diffusers_scheduler(class_name: str, **options: Any) -> Any:
    return getattr(diffusers, class_name)(**options)


def run_scheduler(scheduler: Any, noise: Tensor, **timesteps: Any) -> Tensor:
    """A scheduler's own loop, as a pipeline runs it."""
    scheduler.set_timesteps(**timesteps)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(x_in, t.expand(len(x))), t, x, return_dict=False)[0]
    return x


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


class Gaussian:
    """Data N(mean, std²), for which the probability-flow ODE has a closed solution (Karras et al. 2022, B.3).

    x(t) = α·mean + √(α²·std² + σ²) · z with the same z for all t.
    """

    mean, std = 0.7, 0.4

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def x(self, alpha: float, sigma: float, z: Tensor) -> Tensor:
        return alpha * self.mean + np.sqrt(alpha**2 * self.std**2 + sigma**2) * z

    def output(self, x: Tensor, t: float) -> Tensor:
        """The perfect network's output, in the schedule's prediction type (ε, v or a flow's velocity)."""
        alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        variance = alpha**2 * self.std**2 + sigma**2
        epsilon = sigma * (x - alpha * self.mean) / variance
        x0 = self.mean + alpha * self.std**2 * (x - alpha * self.mean) / variance
        if self.schedule.prediction_type == "v_prediction":
            return alpha * epsilon - sigma * x0
        return epsilon - x0 if self.schedule.is_flow else epsilon

"""Noise schedules: how much signal and noise the network expects at a timestep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solver.plan import coordinates

Array = NDArray[np.float64]

# log-SNR is infinite at σ = 1 on a flow; every flow plan starts this much below.
FLOW_SIGMA_MAX = 1 - 1e-6

# What decides a variance-preserving schedule in a diffusers scheduler's config.
BETA_KEYS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "rescale_betas_zero_snr")

# Settings that bend a flow's sigmas in ways not covered here.
REFUSED = ("invert_sigmas", "shift_terminal")


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = alpha(t) · x0 + sigma(t) · ε, for timesteps t as the network knows them. Immutable, hashable.

    A variance-preserving schedule (α² + σ² = 1) has a table of ᾱ = α² at t = 0 … T - 1; between them log-SNR
    is linear in t. A flow (α + σ = 1, Lipman et al. 2023; Liu et al. 2023) has σ = t / T for 0 < t ≤ T.

    Attributes:
        prediction_type: what the network puts out: epsilon, sample, v_prediction or flow_prediction.
        alphas_cumprod: ᾱ at each training timestep, falling; empty for a flow.
        num_train_timesteps: T.
        shift: for a flow, how far its time grids lean to the noisy end (Esser et al. 2024, eq. 23).
    """

    prediction_type: str
    alphas_cumprod: tuple[float, ...] = ()
    num_train_timesteps: int = 1000
    shift: float = 1.0

    def __post_init__(self) -> None:
        coordinates(self.prediction_type, 1.0, 0.0)
        if self.alphas_cumprod:
            table = np.asarray(self.alphas_cumprod)
            if len(table) != self.num_train_timesteps:
                raise ValueError(f"{len(table)} alphas_cumprod for {self.num_train_timesteps} timesteps.")
            if not (np.all(table > 0) and np.all(table < 1) and np.all(np.diff(table) < 0)):
                raise ValueError("alphas_cumprod must fall from below 1 to above 0.")
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, not {self.shift}.")

    @classmethod
    def from_config(cls, config: Any, *, mu: float | None = None) -> NoiseSchedule:
        """The schedule of any diffusers scheduler: the object, its config, or a dict of the same keys.

        Args:
            config: needs betas (`beta_start`, `beta_schedule`, …) or a flow (`shift`, or `use_flow_sigmas`).
            mu: resolution-dependent shift of a flow with `use_dynamic_shifting`, as in `set_timesteps`.

        Raises:
            ValueError: neither betas nor a flow; dynamic shifting without `mu`; a flow that runs backwards
                (`invert_sigmas`) or is stretched (`shift_terminal`).
        """
        settings: Mapping[str, Any] = config if isinstance(config, Mapping) else config.config
        for key in REFUSED:
            if settings.get(key):
                raise ValueError(f"The scheduler config sets {key}={settings[key]!r}: not supported here.")
        flow_key = "flow_shift" if settings.get("use_flow_sigmas") else "shift"
        if flow_key in settings and not ("beta_schedule" in settings and flow_key == "shift"):
            shift = float(settings[flow_key])
            if settings.get("use_dynamic_shifting"):
                if mu is None:
                    raise ValueError("This flow shifts its sigmas with the resolution; pass mu.")
                shift = _dynamic_shift(settings.get("time_shift_type", "exponential"), mu)
            return cls("flow_prediction", (), int(settings.get("num_train_timesteps", 1000)), shift)
        if "beta_schedule" not in settings and settings.get("trained_betas") is None:
            raise ValueError("The scheduler config has neither betas (beta_schedule, …) nor a flow (shift).")
        betas = {key: settings[key] for key in BETA_KEYS if settings.get(key) is not None}
        if settings.get("trained_betas") is not None:
            betas["trained_betas"] = tuple(map(float, settings["trained_betas"]))
        table = _alphas_cumprod(**betas)
        return cls(settings.get("prediction_type", "epsilon"), table, len(table))

    @property
    def is_flow(self) -> bool:
        """Whether α + σ = 1 (a flow) rather than α² + σ² = 1."""
        return not self.alphas_cumprod

    @property
    def first_timestep(self) -> float:
        """The timestep of pure noise, from which every plan but a `leading` one starts."""
        T = self.num_train_timesteps
        return T * FLOW_SIGMA_MAX if self.is_flow else T - 1.0

    @cached_property
    def _log_snr_table(self) -> Array:
        table = np.asarray(self.alphas_cumprod)
        return 0.5 * (np.log(table) - np.log1p(-table))

    def log_snr(self, t: ArrayLike) -> Array:
        """λ(t) = log(alpha(t) / sigma(t)), half the log of the signal-to-noise ratio (Lu et al. 2022)."""
        t = np.asarray(t, dtype=np.float64)
        if self.is_flow:
            sigma = np.clip(t / self.num_train_timesteps, 0, FLOW_SIGMA_MAX)
            with np.errstate(divide="ignore"):
                return np.log1p(-sigma) - np.log(sigma)
        return np.interp(t, np.arange(self.num_train_timesteps), self._log_snr_table)

    def timestep(self, log_snr: ArrayLike) -> Array:
        """The t at which λ(t) = log_snr; clipped to the schedule's ends where it lies beyond them."""
        log_snr = np.asarray(log_snr, dtype=np.float64)
        if self.is_flow:
            return self.num_train_timesteps * np.minimum(1 / (1 + np.exp(log_snr)), FLOW_SIGMA_MAX)
        t = np.arange(self.num_train_timesteps)
        return np.interp(-log_snr, -self._log_snr_table, t)

    def levels(self, log_snr: ArrayLike) -> tuple[Array, Array]:
        """(alpha, sigma) at log-SNR λ; λ = ∞ is the clean end (1, 0)."""
        # α + σ = 1 on a flow, α² + σ² = 1 otherwise, and α / σ = exp λ.
        power = 1 if self.is_flow else 2
        exponent = power * np.asarray(log_snr, dtype=np.float64)
        return (1 + np.exp(-exponent)) ** (-1 / power), (1 + np.exp(exponent)) ** (-1 / power)

    def alpha(self, t: ArrayLike) -> Array:
        """Signal level at real-valued timesteps t."""
        return self.levels(self.log_snr(t))[0]

    def sigma(self, t: ArrayLike) -> Array:
        """Noise level at real-valued timesteps t."""
        return self.levels(self.log_snr(t))[1]


def shift_for(config: Mapping[str, Any], tokens: int) -> float | None:
    """The `mu` of `NoiseSchedule.from_config` for pictures of so many tokens; None where nothing shifts.

    A line through two numbers of tokens, which the config names, as FLUX's and Stable Diffusion 3's pipelines
    draw it.
    """
    if not config.get("use_dynamic_shifting"):
        return None
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) * (tokens - few) / (many - few)


def _dynamic_shift(kind: str, mu: float) -> float:
    if kind not in ("exponential", "linear"):
        raise ValueError(f"Unknown time_shift_type {kind!r}; only exponential and linear are supported here.")
    return mu if kind == "linear" else math.exp(mu)


@lru_cache(maxsize=32)
def _alphas_cumprod(**betas: Any) -> tuple[float, ...]:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    table = DDPMScheduler(**betas).alphas_cumprod.double()
    if table[-1] == 0:
        # A terminal SNR of exactly zero has no logarithm; 2⁻²⁴ is what diffusers' solvers put there.
        table[-1] = 2.0**-24 if table[-2] > 2.0**-24 else table[-2] / 2
    return tuple(table.tolist())

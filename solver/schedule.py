"""Noise schedules: how much signal and noise the network expects at a timestep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from solver.plan import as_mixture

# λ is infinite at σ = 1 on a flow; every flow plan starts this much below.
FLOW_SIGMA_MAX = 1 - 1e-6

# The entries of a diffusers scheduler's config that define a variance-preserving schedule.
BETA_KEYS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "rescale_betas_zero_snr")

# Settings that change a flow's sigmas in ways not supported here.
REFUSED = ("invert_sigmas",)


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = alpha(t) · x0 + sigma(t) · ε, for timesteps t as the network knows them. Immutable, hashable.

    A variance-preserving schedule (α² + σ² = 1) has a table of ᾱ = α² at t = 0 … T - 1; between them
    λ = log(α / σ) is linear in t. A flow (α + σ = 1, Lipman et al. 2023; Liu et al. 2023) has σ = t / T for
    0 < t ≤ T. Every method takes numbers, arrays or tensors, returns float64 tensors and is differentiable.

    Attributes:
        prediction_type: what the network puts out: epsilon, sample, v_prediction or flow_prediction.
        alphas_cumprod: ᾱ at each training timestep, falling; empty for a flow.
        num_train_timesteps: T.
        shift: for a flow, how far its time grids lean to the noisy end (Esser et al. 2024, eq. 23).
        shift_terminal: for a flow, the σ to which its time grids are stretched; 0 where they are not.
    """

    prediction_type: str
    alphas_cumprod: tuple[float, ...] = ()
    num_train_timesteps: int = 1000
    shift: float = 1.0
    shift_terminal: float = 0.0

    def __post_init__(self) -> None:
        as_mixture(self.prediction_type, 1.0, 0.0)  # refuses an unknown one
        if self.alphas_cumprod:
            table = _tensor(self.alphas_cumprod)
            if len(table) != self.num_train_timesteps:
                raise ValueError(f"{len(table)} alphas_cumprod for {self.num_train_timesteps} timesteps.")
            if not ((table > 0).all() and (table < 1).all() and (table.diff() < 0).all()):
                raise ValueError("alphas_cumprod must fall from below 1 to above 0.")
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, not {self.shift}.")
        if not 0 <= self.shift_terminal < 1:
            raise ValueError(f"shift_terminal must be from 0 to below 1, not {self.shift_terminal}.")

    @classmethod
    def from_config(cls, config: Any, *, mu: float | None = None) -> NoiseSchedule:
        """The schedule of any diffusers scheduler: the object, its config, or a dict of the same keys.

        Args:
            config: needs betas (`beta_start`, `beta_schedule`, …) or a flow (`shift`, or `use_flow_sigmas`).
            mu: resolution-dependent shift of a flow with `use_dynamic_shifting`, as in `set_timesteps`.

        Raises:
            ValueError: neither betas nor a flow; dynamic shifting without `mu`; a flow that runs backwards
                (`invert_sigmas`).
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
            T, terminal = int(settings.get("num_train_timesteps", 1000)), settings.get("shift_terminal")
            return cls("flow_prediction", (), T, shift, float(terminal or 0.0))
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
    def _lam_table(self) -> Tensor:
        table = _tensor(self.alphas_cumprod)
        return 0.5 * (table.log() - torch.log1p(-table))

    def lam(self, t: ArrayLike | Tensor) -> Tensor:
        """λ(t) = log(alpha(t) / sigma(t)), half the log of the signal-to-noise ratio (Lu et al. 2022)."""
        t = _tensor(t)
        if self.is_flow:
            sigma = (t / self.num_train_timesteps).clamp(0, FLOW_SIGMA_MAX)
            return torch.log1p(-sigma) - sigma.log()
        table, t = self._lam_table.to(t.device), t.clamp(0, self.num_train_timesteps - 1)
        before = t.detach().long().clamp(max=self.num_train_timesteps - 2)
        return torch.lerp(table[before], table[before + 1], t - before)

    def timestep(self, lam: ArrayLike | Tensor) -> Tensor:
        """The t at which λ(t) = lam; clipped to the schedule's ends where it lies beyond them."""
        lam, T = _tensor(lam), self.num_train_timesteps
        if self.is_flow:
            return T * torch.sigmoid(-lam).clamp(max=FLOW_SIGMA_MAX)
        table = self._lam_table.to(lam.device)
        after = torch.searchsorted(-table, -lam.detach().contiguous()).clamp(1, T - 1)
        share = (table[after - 1] - lam) / (table[after - 1] - table[after])
        return after - 1 + share.clamp(0, 1)

    def levels(self, lam: ArrayLike | Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at λ; λ = ∞ is the clean end (1, 0)."""
        # α + σ = 1 on a flow, α² + σ² = 1 otherwise, and α / σ = exp λ.
        power, lam = 1 if self.is_flow else 2, _tensor(lam)
        return torch.sigmoid(power * lam) ** (1 / power), torch.sigmoid(-power * lam) ** (1 / power)

    def alpha(self, t: ArrayLike | Tensor) -> Tensor:
        """Signal level at real-valued timesteps t."""
        return self.levels(self.lam(t))[0]

    def sigma(self, t: ArrayLike | Tensor) -> Tensor:
        """Noise level at real-valued timesteps t."""
        return self.levels(self.lam(t))[1]


def shift_for(config: Mapping[str, Any], tokens: int, steps: int = 50) -> float | None:
    """Return the `mu` of `NoiseSchedule.from_config` for a number of tokens; None where nothing shifts.

    It is linear in the number of tokens, through two points that the config names, as in the pipelines of
    FLUX and Stable Diffusion 3; unless the config has a `mu_rule`, one of `MU_RULES` or a number.
    """
    if not config.get("use_dynamic_shifting"):
        return None
    if rule := config.get("mu_rule"):
        return MU_RULES[rule](tokens, steps) if isinstance(rule, str) else float(rule)
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) * (tokens - few) / (many - few)


def flux2_mu(tokens: int, steps: int) -> float:
    """The `mu` of FLUX.2 (Black Forest Labs 2025): linear in tokens and steps, to 4300 tokens."""
    of_200, of_10 = 0.00016927 * tokens + 0.45666666, 8.73809524e-05 * tokens + 1.89833333
    return of_200 if tokens > 4300 else of_200 + (of_200 - of_10) / 190 * (steps - 200)


MU_RULES: Mapping[str, Callable[[int, int], float]] = {"flux2": flux2_mu}
"""Shifts that depend on the number of steps, by name: from (tokens, steps)."""


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


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

# Copyright 2026 Diffusion Preview contributors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""ConsistencySolver (arXiv 2512.13592) as one file for diffusers: learned linear multistep rows, else UniPC's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput

# λ is infinite at σ = 1 on a flow; every run starts this much below.
FLOW_SIGMA_MAX = 1 - 1e-6

Level = tuple[float, float]
"""(alpha, sigma) of alpha · x0 + sigma · ε."""


@dataclass
class ConsistencySolverSchedulerOutput(BaseOutput):
    """
    Output of the scheduler's `step`.

    Args:
        prev_sample (`torch.Tensor`):
            The sample of the next timestep, to be used as the next model input.
        pred_original_sample (`torch.Tensor`):
            The denoised sample as predicted at this timestep, for previews or guidance.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class ConsistencySolverScheduler(SchedulerMixin, ConfigMixin):
    """
    `ConsistencySolverScheduler` follows a table of fixed numbers, one row for each evaluation of the network:

        q[i]   = c[i] * x[i] + d[i] * output[i]
        x[i+1] = a[i] * x[i] + sum_k b[i][k] * q[i-k]

    Learned tables are given in the config, at most one for each number of steps. Other numbers of steps, timesteps or
    sigmas of your own, and image to image have the rows of UniPC of order 2 with its corrector (arXiv 2302.04867),
    from which learned tables start. Every run is deterministic, and without a table spaces its timesteps trailing.

    This scheduler inherits from [`SchedulerMixin`] and [`ConfigMixin`]. Check the superclass documentation for the
    generic methods the library implements for all schedulers such as loading and saving.

    Args:
        num_train_timesteps (`int`, defaults to 1000):
            The number of diffusion steps to train the model.
        beta_start (`float`, defaults to 0.0001):
            The starting `beta` value of inference.
        beta_end (`float`, defaults to 0.02):
            The final `beta` value.
        beta_schedule (`str`, defaults to `"linear"`):
            The beta schedule, one of those of [`DDPMScheduler`].
        trained_betas (`np.ndarray`, *optional*):
            Pass an array of betas directly to the constructor to bypass `beta_start` and `beta_end`.
        prediction_type (`str`, defaults to `epsilon`):
            Prediction type of the scheduler function; can be `epsilon`, `sample`, `v_prediction` or
            `flow_prediction`.
        rescale_betas_zero_snr (`bool`, defaults to `False`):
            Whether to rescale the betas to have zero terminal SNR.
        use_flow_sigmas (`bool`, defaults to `False`):
            Whether the model is a flow: `sample = (1 - sigma) * x0 + sigma * noise`.
        flow_shift (`float`, defaults to 1.0):
            The shift of a flow's timesteps.
        use_dynamic_shifting (`bool`, defaults to `False`):
            Whether a flow's shift depends on the resolution, through `mu` of `set_timesteps`.
        time_shift_type (`str`, defaults to `exponential`):
            Whether the shift is `exp(mu)` (`exponential`) or `mu` (`linear`).
        tables (`list[dict]`, *optional*):
            Learned plans, as `consistency-solver export --to json` writes them.
    """

    _compatibles = [  # noqa: RUF012
        *(e.name for e in KarrasDiffusionSchedulers),
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
    ]
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        tables: list[dict[str, Any]] | None = None,
    ) -> None:
        if use_flow_sigmas:
            self.register_to_config(prediction_type="flow_prediction")
        elif prediction_type == "flow_prediction":
            self.register_to_config(use_flow_sigmas=True)
        _mixture(prediction_type, (1.0, 0.0))  # refuses an unknown one
        for table in tables or ():
            _check_table(table)
        # Two betas or more may be given, however many timesteps the config names.
        ddpm = DDPMScheduler(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self.betas, self.alphas_cumprod = ddpm.betas, ddpm.alphas_cumprod
        if self.alphas_cumprod[-1] == 0:
            # A zero has no logarithm; this is what the other multistep schedulers put there.
            self.alphas_cumprod[-1] = 2**-24
        table = self.alphas_cumprod.double().numpy()
        if table.min() <= 0:
            raise ValueError("These betas leave no signal long before the last timestep.")
        self._lambdas = 0.5 * (np.log(table) - np.log1p(-table))
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self.sigmas = torch.empty(0)
        self._plan: dict[str, Any] = {}
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._x = torch.empty(0)
        self._history: list[torch.Tensor] = []

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """
        Instantiate this scheduler for the model of another one; see [`ConfigMixin.from_config`]. The `shift` of a
        flow-matching scheduler becomes `flow_shift`.
        """
        settings = {**config, **kwargs}
        if "shift" in settings and not {"beta_schedule", "use_flow_sigmas"} & settings.keys():
            kwargs = {"use_flow_sigmas": True, "flow_shift": settings["shift"], **kwargs}
            kwargs.setdefault("prediction_type", "flow_prediction")
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @property
    def step_index(self) -> int | None:
        """
        The index counter for current timestep. It will increase 1 after each scheduler step.
        """
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """
        The index for the first timestep. It should be set from pipeline with `set_begin_index` method.
        """
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """
        Sets the begin index for the scheduler. This function should be run from pipeline before the inference.

        Args:
            begin_index (`int`, defaults to `0`):
                The begin index for the scheduler.
        """
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """
        Sets the timesteps of a run and the rows that it follows (to be run before inference).

        Args:
            num_inference_steps (`int`, *optional*):
                The number of diffusion steps used when generating samples with a pre-trained model.
            device (`str` or `torch.device`, *optional*):
                The device to which the timesteps should be moved to. If `None`, the timesteps are not moved.
            timesteps (`Sequence[float]`, *optional*):
                Falling timesteps to evaluate at, instead of `num_inference_steps`.
            sigmas (`Sequence[float]`, *optional*):
                Falling noise levels to evaluate at, instead of `num_inference_steps`; a zero at the end may be left
                out. On a flow they are shifted, and 1, 1 - 1/N, ..., 1/N mean N steps.
            mu (`float`, *optional*):
                The shift of a flow with `use_dynamic_shifting`.
        """
        if timesteps is not None and sigmas is not None:
            raise ValueError("Can only pass one of `timesteps` or `sigmas`.")
        if num_inference_steps is None and timesteps is None and sigmas is None:
            raise ValueError("Must pass one of `num_inference_steps`, `timesteps` or `sigmas`.")
        flow, steps = self.config.use_flow_sigmas, num_inference_steps
        table = None
        if timesteps is not None:
            told = np.asarray(timesteps, dtype=np.float64)
            levels = [self._level(t) for t in told]
        elif sigmas is not None:
            n = np.asarray(sigmas, dtype=np.float64)
            n = n[:-1] if len(n) > 1 and n[-1] == 0 else n
            if flow and np.allclose(n, np.arange(len(n), 0, -1) / len(n), rtol=0, atol=1e-6):
                table, told, levels = self._spaced(len(n), mu)
            elif flow:
                told = self.config.num_train_timesteps * np.minimum(self._shifted(n, mu), FLOW_SIGMA_MAX)
                levels = [self._level(t) for t in told]
            else:
                told = np.interp(-np.log(n), self._lambdas[::-1], np.arange(len(self._lambdas))[::-1])
                levels = [(1 / math.hypot(1, s), s / math.hypot(1, s)) for s in n.tolist()]
        else:
            steps = int(num_inference_steps or 0)
            if not 1 <= steps <= self.config.num_train_timesteps:
                raise ValueError(
                    f"`num_inference_steps` must be 1 to {self.config.num_train_timesteps}, not {steps}."
                )
            table, told, levels = self._spaced(steps, mu)
        if len(told) == 0 or np.any(np.diff(told) >= 0):
            raise ValueError(f"Timesteps and sigmas must fall: {timesteps if sigmas is None else sigmas}.")
        if steps not in (None, len(told)):
            raise ValueError(f"{len(told)} levels were given for {steps} steps.")
        self._plan = table or _unipc(told.tolist(), [*levels, (1.0, 0.0)], self.config.prediction_type)
        plan = self._plan
        self.num_inference_steps = len(plan["timestep"])
        whole = all(t == round(t) for t in plan["timestep"])
        dtype = torch.int64 if whole else torch.float32
        self.timesteps = torch.tensor(plan["timestep"], dtype=torch.float64).to(device=device, dtype=dtype)
        scale = plan["sigma"] if flow else np.divide(plan["sigma"], plan["alpha"])
        self.sigmas = torch.tensor(scale, dtype=torch.float32)
        self._step_index = self._begin_index = None

    def _spaced(self, steps: int, mu: float | None) -> tuple[dict[str, Any] | None, np.ndarray, list[Level]]:
        """The table for this number of steps, if there is one, and the trailing timesteps with their levels."""
        T, prediction_type = self.config.num_train_timesteps, self.config.prediction_type
        fitting = [t for t in self.config.tables or () if len(t["timestep"]) == steps]
        for table in fitting:
            start = self._level(table["timestep"][0])[1]
            if table["prediction_type"] != prediction_type or abs(table["sigma"][0] - start) > 1e-3:
                raise ValueError(f"The table for {steps} steps was learned for another model.")
        if self.config.use_flow_sigmas:
            told = T * np.minimum(self._shifted(np.arange(steps, 0, -1) / steps, mu), FLOW_SIGMA_MAX)
        else:
            told = np.round(np.arange(T, 0, -T / steps)[:steps]) - 1
        return (fitting[0] if fitting else None), told, [self._level(t) for t in told]

    def _shifted(self, sigmas: np.ndarray, mu: float | None) -> np.ndarray:
        shift = self.config.flow_shift
        if self.config.use_dynamic_shifting:
            if mu is None:
                raise ValueError("`mu` must be passed when `use_dynamic_shifting` is set.")
            shift = math.exp(mu) if self.config.time_shift_type == "exponential" else mu
        return shift * sigmas / (1 + (shift - 1) * sigmas)

    def _level(self, t: float) -> Level:
        if self.config.use_flow_sigmas:
            sigma = min(max(t / self.config.num_train_timesteps, 0.0), FLOW_SIGMA_MAX)
            return 1 - sigma, sigma
        lam = float(np.interp(t, np.arange(len(self._lambdas)), self._lambdas))
        return 1 / math.sqrt(1 + math.exp(-2 * lam)), 1 / math.sqrt(1 + math.exp(2 * lam))

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None
    ) -> int:
        """
        Find the index of a timestep: the first that equals it, else the nearest.

        Args:
            timestep (`float` or `torch.Tensor`):
                The timestep to find.
            schedule_timesteps (`torch.Tensor`, *optional*):
                The timesteps to search, those of the scheduler by default.
        """
        candidates = self.timesteps if schedule_timesteps is None else schedule_timesteps
        return int((candidates.double() - float(timestep)).abs().argmin())

    def _begin(self, timestep: float | torch.Tensor, sample: torch.Tensor) -> int:
        if not self._plan:
            raise ValueError(
                "Number of inference steps is 'None', you need to run 'set_timesteps' after creating the scheduler"
            )
        i = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if i:  # no outputs from before exist, so the rest of the levels gets rows that need none
            plan = self._plan
            levels = list(zip(plan["alpha"], plan["sigma"], strict=True))
            rest = _unipc(plan["timestep"][i:], levels[i:], self.config.prediction_type)
            self._plan = plan | {name: [*plan[name][:i], *rest[name]] for name in "abcd"}
        self._x, self._history = sample.float(), []
        return i

    def scale_model_input(
        self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Ensures interchangeability with schedulers that need to scale the denoising model input depending on the
        current timestep. The sample is returned as it is.
        """
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> ConsistencySolverSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """
        Predict the sample of the next timestep by one row of the table.

        Args:
            model_output (`torch.Tensor`):
                The direct output from learned diffusion model.
            timestep (`float` or `torch.Tensor`):
                The current timestep; looked at in the first step of a run alone.
            sample (`torch.Tensor`):
                A current instance of a sample created by the diffusion process.
            generator (`torch.Generator`, *optional*):
                Not used: no noise is drawn.
            return_dict (`bool`, defaults to `True`):
                Whether or not to return a [`ConsistencySolverSchedulerOutput`] or `tuple`.

        Returns:
            [`ConsistencySolverSchedulerOutput`] or `tuple`: `prev_sample` and `pred_original_sample`.
        """
        i = self._step_index
        if i is None or i == self.num_inference_steps:
            i = self._begin(timestep, sample)
        plan = self._plan
        # Where a sample comes back as it was handed out, the state of before its rounding is known.
        if sample.shape == self._x.shape and sample.dtype != torch.float32:
            x = torch.where(sample == self._x.to(sample.dtype), self._x, sample.float())
        else:
            x = sample.float()
        output = model_output.float()
        c, d = _to_x0(self.config.prediction_type, (plan["alpha"][i], plan["sigma"][i]))
        x0 = c * x + d * output
        self._history = [plan["c"][i] * x + plan["d"][i] * output, *self._history][: len(plan["b"][-1])]
        self._x = plan["a"][i] * x
        for weight, q in zip(plan["b"][i], self._history, strict=False):
            self._x = self._x + weight * q
        self._step_index = i + 1
        prev_sample, x0 = self._x.to(sample.dtype), x0.to(sample.dtype)
        if not return_dict:
            return prev_sample, x0
        return ConsistencySolverSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """
        Add noise to the original samples at the levels of these timesteps, or where a begin index is set, at that of
        the current step.
        """
        alpha, sigma = self._levels(timesteps, original_samples)
        return (alpha * original_samples.float() + sigma * noise).to(original_samples.dtype)

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """
        `add_noise` as pipelines of flow-matching models call it.
        """
        return self.add_noise(sample, noise, timestep)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """
        The velocity that a model predicts for these samples and this noise: `alpha * noise - sigma * sample`, on a
        flow `noise - sample`.
        """
        if self.config.use_flow_sigmas:
            return noise - sample
        levels = [self._level(t) for t in timesteps.reshape(-1).tolist()]
        alpha, sigma = _shaped(levels, sample)
        return (alpha * noise - sigma * sample.float()).to(sample.dtype)

    def _levels(self, timesteps: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plan = self._plan
        if plan and self._begin_index is not None:
            i = self._begin_index if self._step_index is None else self._step_index
            return _shaped([(plan["alpha"][i], plan["sigma"][i])], like)
        known = self.timesteps.tolist() if plan else []
        levels = []
        for t in timesteps.reshape(-1).tolist():
            if t in known:
                i = known.index(t)
                levels.append((plan["alpha"][i], plan["sigma"][i]))
            else:
                levels.append(self._level(t))
        return _shaped(levels, like)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _shaped(levels: list[Level], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma, each [B, 1, ...]."""
    pairs = torch.tensor(levels, dtype=torch.float64).to(like.device, torch.float32)
    alpha, sigma = pairs.T.reshape(2, -1, *[1] * (like.dim() - 1))
    return alpha, sigma


def _check_table(table: dict[str, Any]) -> None:
    version = table.get("version", 1)
    if version != 1:
        raise ValueError(f"A table has version {version} of its format, and this scheduler reads version 1.")
    missing = {"timestep", "alpha", "sigma", "a", "b", "c", "d", "prediction_type"} - table.keys()
    if missing:
        raise ValueError(f"A table lacks {', '.join(sorted(missing))}.")
    levels = set(zip(table["alpha"][:-1], table["sigma"][:-1], strict=True))
    scales = {table.get("init_noise_scale", 1.0), *table.get("input_scale", [1.0])}
    if len(levels) != len(table["timestep"]) or scales != {1.0}:
        raise ValueError(
            "A table must take one evaluation a step, and keep its state in the model's scaling."
        )


def _mixture(prediction_type: str, level: Level) -> Level:
    """(p, r) of p · x0 + r · ε, which a prediction of this type is."""
    alpha, sigma = level
    kinds = {"epsilon": (0.0, 1.0), "sample": (1.0, 0.0), "v_prediction": (-sigma, alpha)}
    kinds["flow_prediction"] = (-1.0, 1.0)
    if prediction_type not in kinds:
        raise ValueError(f"`prediction_type` must be one of {', '.join(kinds)}, not {prediction_type}.")
    return kinds[prediction_type]


def _to_x0(prediction_type: str, level: Level) -> Level:
    """(c, d) with x0 = c · x + d · output."""
    (alpha, sigma), (p, r) = level, _mixture(prediction_type, level)
    return r / (alpha * r - sigma * p), -sigma / (alpha * r - sigma * p)


def _unipc(timesteps: Sequence[float], levels: Sequence[Level], prediction_type: str) -> dict[str, Any]:
    """
    The table of UniPC of order 2, B(h) = e^h - 1, with its corrector (arXiv 2302.04867, algorithm 1): with
    lambda = log(alpha / sigma), h[i] = lambda[i+1] - lambda[i], and A, B of an exact step for constant x0

        A[i] = sigma[i+1] / sigma[i],  B[i] = alpha[i+1] * (1 - exp(-h[i]))
        predictor  w[i] = (1 + h[i] / 2h[i-1], -h[i] / 2h[i-1])
        corrector  w'[i], which integrates e^lambda times the parabola through the x0 at both ends of step i and
                   before exactly (in the first step, both ends in halves)

    The corrector moves x[i+1] once x0[i+1] is known, so what it adds is part of row i + 1.
    """
    lam = [math.log(alpha / sigma) if sigma else math.inf for alpha, sigma in levels]
    h = [after - before for before, after in pairwise(lam)]
    N = len(timesteps)

    def predictor(i: int) -> list[float]:
        half = 0.0 if i == 0 or math.isinf(h[i]) else h[i] / h[i - 1] / 2
        return [1 + half, -half]

    def corrector(i: int) -> list[float]:
        if i == 0:
            return [0.5, 0.5, 0.0]
        # Moments of u^j under e^(hu) on [0, 1], and the weights that have them, at u = 1, 0 and -h[i-1]/h[i].
        moments = [1.0]
        for j in (1, 2):
            moments.append(-1 / math.expm1(-h[i]) - j / h[i] * moments[-1])
        nodes = np.array([1.0, 0.0, -h[i - 1] / h[i]])
        return np.linalg.solve(np.vander(nodes, increasing=True).T, moments).tolist()

    a, b = [], []
    for i in range(N):
        (_, sigma), (alpha_next, sigma_next) = levels[i], levels[i + 1]
        scale = -alpha_next * math.expm1(-h[i])
        row = [*predictor(i), 0.0]
        if i and not math.isinf(h[i]):
            carried = math.expm1(-h[i - 1]) / -math.expm1(h[i])  # A[i] · B[i-1] / B[i]
            change = np.subtract(corrector(i - 1), [0.0, *predictor(i - 1)])
            row = [w + carried * v for w, v in zip(row, change.tolist(), strict=True)]
        a.append(sigma_next / sigma)
        b.append([scale * w for w in row[: i + 1]])
    readings = [_to_x0(prediction_type, level) for level in levels[:-1]]
    return {
        "prediction_type": prediction_type,
        "timestep": list(timesteps),
        "alpha": [alpha for alpha, _ in levels],
        "sigma": [sigma for _, sigma in levels],
        "a": a,
        "b": b,
        "c": [c for c, _ in readings],
        "d": [d for _, d in readings],
    }

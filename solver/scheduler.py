"""ConsistencySolver as a scheduler for any diffusers pipeline."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import (
    KarrasDiffusionSchedulers,
    SchedulerMixin,
    SchedulerOutput,
)
from huggingface_hub import hf_hub_download
from torch import Tensor

from solver.consistency import POLICY_FILE, LearnedSolver
from solver.grids import TimeGrid, grid_at_sigmas, grid_at_timesteps
from solver.paper import load_policy
from solver.plan import Plan
from solver.policy import Policy
from solver.sampling import SampleState
from solver.schedule import NoiseSchedule
from solver.solvers import make_plan, refuse_nonlinear

FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")

# What `from_pretrained` is told about where to download from, which the policy's file needs too.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class ConsistencySolverScheduler(SchedulerMixin, ConfigMixin):
    """Follows a `solver.Plan` inside a diffusers pipeline: learned rows where there are any, else UniPC's.

        pipe.scheduler = ConsistencySolverScheduler.from_config(pipe.scheduler.config)
        pipe.scheduler = ConsistencySolverScheduler.from_pretrained(model, subfolder="solver")

    Pictures depend on nothing but the network, the noise and the number of steps: no random numbers are drawn
    here, and samples of a batch do not touch each other. Sums are kept in float32 whatever the pipeline's
    precision. The other scheduler's grid (`timestep_spacing`, `use_karras_sigmas`, …) is not taken over, as
    rows belong to their grid; `grid` chooses it.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the
            noise schedule of a variance-preserving model, as in every diffusers scheduler.
        prediction_type: what the network puts out: epsilon, sample, v_prediction or flow_prediction.
        use_flow_sigmas, flow_shift, use_dynamic_shifting, time_shift_type, shift_terminal: those of a
            flow-matching model, as in diffusers' multistep solvers; `from_config` translates those of its
            flow schedulers.
        grid: where no table decides it, one of `solver.GRIDS`.
        guidance: the guidance scale that a policy is told.
        tables: learned plans as dicts (`Plan.to_dict`), at most one for each number of steps.
        policy_file: file of the policy's weights beside the config; set by assigning `policy`.
    """

    _compatibles = [*(scheduler.name for scheduler in KarrasDiffusionSchedulers), *FLOW_SCHEDULERS]  # noqa: RUF012
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
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        grid: str = "trailing",
        guidance: float = 3.0,
        tables: list[dict[str, Any]] | None = None,
        policy_file: str | None = None,
        shift_terminal: float | None = None,
    ) -> None:
        # Diffusers takes positional arguments for ones that nobody chose, and `from_config` drops those.
        defaults = inspect.signature(type(self).__init__).parameters
        if unchosen := self.config.get("_use_default_values"):
            unchosen = [key for key in unchosen if repr(self.config[key]) == repr(defaults[key].default)]
            self.register_to_config(_use_default_values=unchosen)
        self.learned = LearnedSolver(tuple(map(Plan.from_dict, tables or ())))
        # Any mu will do for a dynamically shifted flow: its shift moves grids, not levels.
        self.schedule = NoiseSchedule.from_config(self.config, mu=1.0)
        self.alphas_cumprod = torch.tensor(self.schedule.alphas_cumprod)
        self.betas = 1 - self.alphas_cumprod / torch.cat([torch.ones(1), self.alphas_cumprod])[:-1]
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self.sigmas = torch.empty(0)
        self._plan: Plan | None = None
        self._state: SampleState | None = None
        self._begin_index: int | None = None

    @classmethod
    def from_config(cls, config: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """This scheduler for the model of another one.

        Tables in the config are kept. A policy is not part of a config: assign `policy`, or load with
        `from_pretrained`.

        Args:
            config: `scheduler.config` of any diffusers scheduler.
            kwargs: entries to override.

        Raises:
            ValueError: a config that no linear solver can follow (says why).
        """
        settings = {**config, **kwargs}
        # Nobody chose these, so ours apply.
        unspoken = [key for key in config.get("_use_default_values", ()) if key not in kwargs]
        refuse_nonlinear({key: value for key, value in settings.items() if key not in unspoken})
        NoiseSchedule.from_config(settings, mu=1.0)  # refuses what our defaults would hide
        # What a class does not know diffusers keeps from the config alone, so that must be overridden too.
        overridden = {key: value for key, value in kwargs.items() if key in config}
        config = {**config, **overridden, "_use_default_values": unspoken}
        ours = {"beta_schedule", "trained_betas", "use_flow_sigmas"}
        if "shift" in settings and not (ours & settings.keys()):
            flow = {"use_flow_sigmas": True, "flow_shift": settings["shift"]}
            kwargs = flow | {"prediction_type": "flow_prediction"} | kwargs
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load config, tables and policy from a folder or a Hub repository, as every diffusers scheduler."""
        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        scheduler, unused = super().from_pretrained(
            pretrained_model_name_or_path, subfolder=subfolder, return_unused_kwargs=True, **kwargs
        )
        if name := scheduler.config.policy_file:
            folder = Path(pretrained_model_name_or_path)
            if folder.is_dir():
                inside = folder / (subfolder or "")  # where diffusers looks for the config first
                path = (inside if (inside / cls.config_name).is_file() else folder) / name
            else:
                path = hf_hub_download(pretrained_model_name_or_path, name, subfolder=subfolder, **hub)
            scheduler.policy = load_policy(path)
        return (scheduler, unused) if return_unused_kwargs else scheduler

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save config and tables as JSON and the policy, where there is one, as safetensors beside it."""
        folder = Path(save_directory)
        if self.policy is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.policy.save(folder / self.config.policy_file)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def policy(self) -> Policy | None:
        """Writes the rows for numbers of steps and grids that have no table; assign one, or None."""
        return self.learned.policy

    @policy.setter
    def policy(self, policy: Policy | None) -> None:
        self.learned = dataclasses.replace(self.learned, policy=policy)
        self.register_to_config(policy_file=None if policy is None else POLICY_FILE)
        unspoken = self.config.get("_use_default_values", [])
        if "policy_file" in unspoken:  # what is listed there would not be handed on by from_config
            unspoken.remove("policy_file")

    @property
    def plan(self) -> Plan:
        """The rows that `set_timesteps` chose.

        Raises:
            ValueError: it has not been called.
        """
        if self._plan is None:
            raise ValueError("Call set_timesteps first.")
        return self._plan

    @property
    def step_index(self) -> int | None:
        """The next row, 0 … N; None before the first step."""
        return None if self._state is None else self._state.index

    @property
    def begin_index(self) -> int | None:
        """The row to begin at, where a pipeline has set one."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this row, for a picture that was noised to its level (image-to-image)."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the rows to follow; forgets everything about earlier runs.

        Args:
            num_inference_steps: N, 1 to 1000, each one network evaluation.
            device: where `timesteps` are put.
            timesteps: instead of N, the timesteps to evaluate at, falling; tables do not apply.
            sigmas: instead of N, the noise levels to evaluate at, falling to 0 (which may be left out):
                σ / α, or on a flow σ before its shift; tables do not apply. On a flow 1, 1 - 1/N, …, 1/N mean
                N, since most of its pipelines ask for N steps in this way.
            mu: resolution-dependent shift of a flow with `use_dynamic_shifting`; others ignore it.

        Raises:
            ValueError: not exactly one of N, timesteps and sigmas (an N that fits the others is allowed),
                values that cannot be used (says why), or a flow's sigmas or mu where no noise schedule was
                chosen.
        """
        if timesteps is not None and sigmas is not None:
            raise ValueError("Give timesteps or sigmas, not both.")
        if num_inference_steps is None and timesteps is None and sigmas is None:
            raise ValueError("Give one of num_inference_steps, timesteps and sigmas.")
        if self.config.policy_file and self.policy is None:
            raise ValueError(
                "The config names a policy, but its weights are not here: load with from_pretrained, or "
                "assign scheduler.policy."
            )
        unchosen = {"beta_schedule", "trained_betas"} <= set(self.config.get("_use_default_values", ()))
        asked_by_a_flow = mu is not None or (sigmas is not None and _evenly_spaced(sigmas))
        if asked_by_a_flow and unchosen and not self.schedule.is_flow:
            raise ValueError(
                "A flow-matching pipeline asks for these timesteps, and the scheduler was made without the "
                "settings of a flow. Use FlowConsistencySolverScheduler, or from_config with the config of "
                "the pipeline's own scheduler."
            )
        self.schedule = NoiseSchedule.from_config(self.config, mu=mu)
        steps = num_inference_steps
        if sigmas is not None and self.schedule.is_flow and _evenly_spaced(sigmas):
            steps, sigmas = len(sigmas), None
        if timesteps is not None:
            plan = self._plan_on(grid_at_timesteps(timesteps, self.schedule))
        elif sigmas is not None:
            plan = self._plan_on(grid_at_sigmas(sigmas, self.schedule))
        else:
            plan = make_plan(
                "consistency",
                steps,  # type: ignore[arg-type]
                self.schedule,
                grid=self.config.grid,
                learned=self.learned,
                guidance=self.config.guidance,
            )
        if num_inference_steps not in (None, plan.nfe):
            raise ValueError(f"{plan.nfe} levels were given for {num_inference_steps} steps.")
        told = torch.tensor(plan.timestep, dtype=torch.float64)
        whole = bool((told == told.round()).all())
        self.timesteps = told.to(torch.int64 if whole else torch.float32).to(device)
        scale = plan.sigma if self.schedule.is_flow else np.divide(plan.sigma, plan.alpha)
        self.sigmas = torch.tensor(scale, dtype=torch.float32)
        self._plan, self.num_inference_steps = plan, plan.nfe
        self._state = self._begin_index = None

    def _plan_on(self, grid: TimeGrid) -> Plan:
        return self.learned.plan_on(grid, self.schedule, guidance=self.config.guidance)

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """The row of a timestep: the first that has it, else the one nearest to it."""
        candidates = self.timesteps if schedule_timesteps is None else schedule_timesteps
        t = float(timestep)
        distance = [abs(candidate - t) for candidate in candidates.tolist()]
        return distance.index(min(distance))

    def _begin(self, timestep: float | Tensor, sample: Tensor) -> SampleState:
        i = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if not 0 <= i < self.plan.nfe:
            raise ValueError(f"The begin index must be 0 to {self.plan.nfe - 1}, not {i}.")
        return SampleState(_entered_at(self.plan, i, self._plan_on) if i else self.plan, sample, index=i)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as it is: states are kept in the network's scaling."""
        return sample

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """One row of the plan.

        Args:
            model_output: the network's output, of any floating type.
            timestep: its timestep, looked at in the first step of a run alone (and there only if no begin
                index is set), so that later steps never wait for the device.
            sample: the state x[i], of any floating type. In half precision it is known more exactly than it
                was handed out, and that is used wherever it comes back unchanged.
            return_dict: whether to return a SchedulerOutput rather than a tuple.

        Returns:
            x[i+1] in the sample's type, as `prev_sample` or first of the tuple. A step after the last begins
            a new run at `timestep`.

        Raises:
            ValueError: timesteps have not been set, or a begin index beyond them.
        """
        state = self._state
        if state is None or state.done:
            state = self._state = self._begin(timestep, sample)
        if sample.dtype == state.x.dtype or sample.shape != state.x.shape:
            state.x = sample.float()
        else:
            state.x = torch.where(sample == state.x.to(sample.dtype), state.x, sample.float())
        state.step(model_output)
        result = state.x.to(sample.dtype)
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Pictures noised to the levels of these timesteps.

        Args:
            original_samples, noise: [B, ...], noise of unit variance.
            timesteps: [B] or [1]. Where a begin index is set, its level, or in a run that of the next row, is
                meant instead, as in every diffusers scheduler.
        """
        levels = torch.tensor(self._levels(timesteps), device=original_samples.device)
        alpha, sigma = levels.T.reshape(2, -1, *[1] * (original_samples.dim() - 1))
        return (alpha * original_samples.float() + sigma * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` as pipelines of flow-matching models call it."""
        return self.add_noise(sample, noise, timestep)

    def _levels(self, timesteps: Tensor) -> list[tuple[float, float]]:
        if self._plan is not None and self._begin_index is not None:
            i = self._begin_index if self.step_index is None else self.step_index
            return [(self.plan.alpha[i], self.plan.sigma[i])]
        told = self.timesteps.tolist() if self._plan is not None else []
        levels = []
        for t in timesteps.reshape(-1).tolist():
            if t in told:
                i = told.index(t)  # the first, as in index_for_timestep
                levels.append((self.plan.alpha[i], self.plan.sigma[i]))
            else:
                levels.append((float(self.schedule.alpha(t)), float(self.schedule.sigma(t))))
        return levels

    def __len__(self) -> int:
        return self.config.num_train_timesteps


class FlowConsistencySolverScheduler(ConsistencySolverScheduler):
    """The same with the settings of a flow-matching model where none are given.

    For programs that make schedulers by their class alone: `Class(num_train_timesteps=1000)`.

    Raises:
        ValueError: settings of a model that is no flow.
    """

    @functools.wraps(ConsistencySolverScheduler.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        super().__init__(*args, **flow | kwargs)
        if not self.schedule.is_flow or self.config.prediction_type != "flow_prediction":
            raise ValueError("These settings are not those of a flow; use ConsistencySolverScheduler.")


def _evenly_spaced(sigmas: Sequence[float]) -> bool:
    """Whether these are 1, 1 - 1/N, …, 1/N."""
    N = len(sigmas)
    return N > 0 and np.allclose(sigmas, np.arange(N, 0, -1) / N, rtol=0, atol=1e-6)


def _entered_at(plan: Plan, i: int, plan_on: Callable[[TimeGrid], Plan]) -> Plan:
    """The plan with rows from i on that need no outputs from before, on the same levels."""
    t, alpha, sigma = (
        torch.tensor(numbers[i:], dtype=torch.float64) for numbers in (plan.timestep, plan.alpha, plan.sigma)
    )
    rest = plan_on(TimeGrid(t, torch.log(alpha / sigma)))
    rows = {name: getattr(plan, name)[:i] + getattr(rest, name) for name in "abcd"}
    return dataclasses.replace(plan, **rows)

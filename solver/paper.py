"""The paper's policy (arXiv 2512.13592, section 4), as its authors published it, and their one for flows.

    (t[i], t[i+1]) / (T - 1) → Linear → ReLU → Linear → ReLU → (m - 1) categoricals over K values

Each categorical decides one weight of y[i+1] = y[i] + (n[i+1] - n[i]) · Σ_k w[i, k] · ε[i-k]; the oldest
output has the rest, so that they sum to one. On a flow it sees (σ[i], σ[i+1]) instead and decides the weights
of x[i+1] = x[i] + (σ[i+1] - σ[i]) · Σ_k w[i, k] · v[i-k]. `solver.convert` reads published weights into it,
and `solver.policy.Policy` is what this package trains instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor

from solver.policy import Policy
from solver.schedule import NoiseSchedule
from solver.table_policy import TablePolicy


class PaperPolicy(Policy):
    """(t[i], t[i+1]) → row i of a linear multistep method of order m in ε, by choices among K values.

    It does not know the number of steps nor the guidance scale. Untrained, all values are equally likely. Its
    runs end at the schedule's lowest level, which it sees as t = -1, rather than at σ = 0.

    Args:
        order: m, 2 to 32.
        bins: K, odd; or 0 for the continuous twin, which starts as Euler's method and is trained by gradient
            or by PPO with a Gaussian.
        hidden: width of the two hidden layers.
        steps, guidance, num_train_timesteps: as for `Policy`.
    """

    inputs: ClassVar[Mapping[str, int]] = {"paper": 2}
    last_timestep = -1.0
    # The most that the newest output's weight may exceed Euler's.
    newest_gain: ClassVar[float] = 2.0

    def __init__(
        self,
        order: int = 4,
        bins: int = 11,
        hidden: int = 256,
        *,
        steps: tuple[int, int] = (1, 1000),
        guidance: tuple[float, float] = (1.0, 20.0),
        num_train_timesteps: int = 1000,
    ) -> None:
        if order < 2:
            raise ValueError("The paper's policy has order 2 or more.")
        super().__init__(
            order,
            "euler",
            sees=next(iter(self.inputs)),
            bins=bins,
            hidden=hidden,
            steps=steps,
            guidance=guidance,
            num_train_timesteps=num_train_timesteps,
        )

    @classmethod
    def choices(cls, decisions: int, bins: int) -> Tensor:
        """Return what can be added to Euler's weights 1, 0, 0, …: [decisions, bins], rising.

        So the newest output weighs 1 to 3 (1 to 2 on a flow), the one before -2 to 0, all but the last of the
        others -1 to 1.
        """
        spans = [(0, cls.newest_gain), (-2, 0), *[(-1, 1)] * decisions][:decisions]
        return torch.stack([torch.linspace(low, high, bins) for low, high in spans])

    def values_of_bins(self) -> tuple[Tensor, Tensor]:
        return self.choices(len(self.decisions), self.bins), torch.zeros(self.bins)

    def see(self, t: Tensor, t_next: Tensor, steps: Tensor, guidance: Tensor) -> Tensor:
        return torch.stack([t, t_next], dim=-1) / (self.num_train_timesteps - 1)

    def last_lam(self, schedule: NoiseSchedule) -> float:
        return float(schedule.lam(0.0))


class PaperFlowPolicy(PaperPolicy):
    """(σ[i], σ[i+1]) → row i of a linear multistep method in the velocity of a flow, by choices among K.

    The authors' variant for FLUX.1 Kontext. Its runs end at σ = 0.
    """

    inputs: ClassVar[Mapping[str, int]] = {"paper-flow": 2}
    last_timestep = 0.0
    newest_gain: ClassVar[float] = 1.0

    def see(self, t: Tensor, t_next: Tensor, steps: Tensor, guidance: Tensor) -> Tensor:
        return torch.stack([t, t_next], dim=-1) / self.num_train_timesteps

    def last_lam(self, schedule: NoiseSchedule) -> float:
        return math.inf


PAPER_POLICIES: Mapping[str, type[PaperPolicy]] = {
    name: cls for cls in (PaperPolicy, PaperFlowPolicy) for name in cls.inputs
}
"""What a policy of the paper sees → its class."""


def paper_policy_for(schedule: NoiseSchedule) -> type[PaperPolicy]:
    """Return the class of the paper's policy on this schedule."""
    return PaperFlowPolicy if schedule.is_flow else PaperPolicy


def load_policy(path: str | Path) -> Policy:
    """Read a policy that `Policy.save` wrote, the paper's or ours, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a safetensors file that is not a policy.
    """
    with safe_open(path, framework="pt") as file:
        saved = (file.metadata() or {}).get("policy")
        if saved is None:
            raise ValueError(f"{path} is not a policy: its metadata lack the settings.")
        settings = json.loads(saved)
        if settings["sees"] in TablePolicy.inputs:
            policy: Policy = TablePolicy(**{name: v for name, v in settings.items() if name != "sees"})
        else:
            policy = Policy(**settings) if settings["sees"] in Policy.inputs else _paper_policy(settings)
        policy.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return policy.eval()


def _paper_policy(settings: Mapping[str, Any]) -> PaperPolicy:
    own = ("order", "bins", "hidden", "steps", "guidance", "num_train_timesteps")
    return PAPER_POLICIES[settings["sees"]](**{name: settings[name] for name in own})

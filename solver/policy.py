"""The policy of ConsistencySolver: a small network that writes the weights of a linear multistep method."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from solver.grids import TimeGrid
from solver.multistep import dpm_solver_2m, multistep_plan, variable_adams_bashforth
from solver.plan import Plan
from solver.schedule import NoiseSchedule

# Where the untrained policy starts: the classical solver, and what its rows combine.
STARTS = {
    "ab": "epsilon",  # Adams-Bashforth for unequal steps, of the policy's order; a velocity on a flow
    "dpm2m": "epsilon",  # DPM-Solver-2M
    "dpm++2m": "sample",  # DPM-Solver++ 2M
}


class Policy(nn.Module):
    """(t[i], t[i+1], N, guidance) → the weights w of row i of a linear multistep method of order m.

    As in the paper, an MLP with ReLU and an m-th weight that is what remains to one; but it adds to the
    weights of a classical solver instead of choosing from bins, and its last layer starts at zero, so that
    untrained it *is* that solver. The first rows use the outputs there are.

    Args:
        order: m, 1 to 4; with 1 there is nothing to learn.
        start: one of `STARTS`, which also says what is combined: ε ("ab", "dpm2m"; a velocity for "ab" on a
            flow) or x0 ("dpm++2m").
        hidden: width of the two hidden layers.
        num_train_timesteps: T, the model's.
    """

    def __init__(
        self, order: int = 4, start: str = "dpm++2m", hidden: int = 64, num_train_timesteps: int = 1000
    ) -> None:
        super().__init__()
        if not 1 <= order <= 4:
            raise ValueError(f"The order of a policy is 1 to 4, not {order}.")
        if start not in STARTS:
            raise ValueError(f"Unknown start {start!r}; choose one of {', '.join(STARTS)}.")
        self.settings = {
            "order": order,
            "start": start,
            "hidden": hidden,
            "num_train_timesteps": num_train_timesteps,
        }
        self.order, self.start, self.num_train_timesteps = order, start, num_train_timesteps
        last = nn.Linear(hidden, max(order - 1, 1))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)

    def forward(self, t: Tensor, t_next: Tensor, steps: Tensor, guidance: Tensor) -> Tensor:
        """What is added to the classical weights of all but the oldest output.

        Args:
            t, t_next: [R] timesteps, 0 to T; t_next is 0 for a step to the clean end.
            steps: [R] N, 1 to 1000.
            guidance: [R] guidance scale.

        Returns:
            [R, max(m - 1, 1)].
        """
        T = self.num_train_timesteps
        features = [t / T, t_next / T, steps.log() / math.log(1000), guidance / 10]
        return self.mlp(torch.stack(features, dim=-1))

    def read_as(self, schedule: NoiseSchedule) -> str:
        """What the rows combine on this schedule."""
        return "flow_prediction" if self.start == "ab" and schedule.is_flow else STARTS[self.start]

    def weights(self, schedule: NoiseSchedule, grid: TimeGrid, guidance: float) -> Tensor:
        """The weights [N, m], float64 and differentiable, newest output first; each row sums to one.

        Entries for outputs that do not exist yet are zero. `multistep_plan` and `transport` say what they
        weigh.
        """
        t, alpha, sigma = grid
        N, m = len(t), self.order
        with np.errstate(divide="ignore"):
            log_snr = np.log(alpha) - np.log(sigma)
        if self.start == "ab":
            classical = variable_adams_bashforth(sigma if schedule.is_flow else sigma / alpha, m)
        else:
            classical = dpm_solver_2m(log_snr) if m > 1 else [[1.0]] * N
        device = next(self.parameters()).device
        base = torch.zeros(N, m, dtype=torch.float64)
        for i, row in enumerate(classical):
            base[i, : len(row)] = torch.tensor(row, dtype=torch.float64)

        now = torch.tensor(np.append(t, 0.0), dtype=torch.float32, device=device)
        told = torch.tensor([[float(N), guidance]], device=device).expand(N, 2)
        learned = self(now[:-1], now[1:], told[:, 0], told[:, 1]).double()[:, : m - 1]
        outputs = torch.arange(1, N + 1, device=device).clamp(max=m)[:, None]  # how many there are by row i
        lag = torch.arange(m, device=device)
        newer = torch.cat([learned, learned.new_zeros(N, 1)], dim=1) * (lag < outputs - 1)
        oldest = (lag == outputs - 1) * -newer.sum(dim=1, keepdim=True)
        return base.to(device) + newer + oldest

    @torch.no_grad()
    def plan(self, schedule: NoiseSchedule, grid: TimeGrid, guidance: float) -> Plan:
        """The policy's solver on a grid of any number of steps.

        Raises:
            ValueError: a policy in ε on a flow.
        """
        rows = self.weights(schedule, grid, guidance).tolist()
        rows = [row[: i + 1] for i, row in enumerate(rows)]
        return multistep_plan("consistency", rows, self.read_as(schedule), schedule, grid)

    def save(self, path: str | Path) -> None:
        """Write weights and settings as one safetensors file."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, path, metadata={"policy": json.dumps(self.settings)})

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a policy that `save` wrote, on the CPU.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a safetensors file that is no policy.
        """
        with safe_open(path, framework="pt") as file:
            settings = (file.metadata() or {}).get("policy")
            if settings is None:
                raise ValueError(f"{path} is not a policy: its metadata lack the settings.")
            policy = cls(**json.loads(settings))
            policy.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return policy.eval()

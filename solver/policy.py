"""The policy of ConsistencySolver: a small network that writes the rows of a linear multistep method."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from solver.grids import TimeGrid
from solver.multistep import METHODS, multistep, starting_weights, variable_adams_bashforth
from solver.plan import Plan, Tables
from solver.schedule import NoiseSchedule

# Where the untrained policy starts: the classical solver, and what its rows combine.
STARTS = {
    "euler": "epsilon",  # Euler's method, which is DDIM; a velocity on a flow
    "ab": "epsilon",  # Adams-Bashforth for unequal steps, of the policy's order; a velocity on a flow
    "dpm2m": "epsilon",  # DPM-Solver-2M
    "dpm++2m": "sample",  # DPM-Solver++ 2M
    "unipc": "sample",  # UniPC
}
MAX_ORDER = 32
FREQUENCIES = 4

# What a policy can decide, with the half-width of its bins and the standard deviation of its first draws.
DECISIONS = {
    "rows": (0.5, 0.03),  # added to a weight
    "grid": (0.5, 0.05),  # log of the factor on a step in log-SNR
    "times": (0.25, 0.03),  # log-SNR added to what the network is told
    "state": (0.25, 0.01),  # added to the weight a[i] of the state
}


def waves(x: Tensor) -> Tensor:
    """sin and cos of πx, 2πx, 4πx, 8πx, as a new last dimension: so a small network tells steps apart.

    From the bare numbers it learns several times more slowly.
    """
    angles = x[..., None] * math.pi * 2.0 ** torch.arange(FREQUENCIES, device=x.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Policy(nn.Module):
    """(t[i], t[i+1], N, guidance) → row i of a linear multistep method of order m.

    As in the paper an MLP with ReLU, but what it writes is added to a classical solver, and its last layer
    starts at zero: untrained it *is* that solver. `rows` are the weights of the outputs; the oldest has what
    remains to one, unless `free`. `grid` are the steps in log-SNR between the first level and the last above
    zero, both the classical grid's to begin with; the first stays. `times` lets the network be told other
    timesteps than where the ODE stands. `state` frees the weight of the state, which
    otherwise makes a step exact where the prediction does not change: so it is zero in the last row of x0.

    Args:
        order: m, 1 to 32; rows use the outputs there are, so N or more is all of them.
        start: one of `STARTS`, which also says what is combined: ε ("ab", "dpm2m"; a velocity for "ab" on a
            flow) or x0 ("dpm++2m", "unipc").
        learns: some of DECISIONS.
        free: whether rows need not sum to one.
        sees: "run" for all four inputs, "step" for t[i] and t[i+1] alone.
        bins: 0 for continuous actions, or the odd number of values that each decision chooses from.
        hidden: width of the two hidden layers.
        steps: the least and the largest N it was trained for; beyond them `LearnedSolver` does not ask it.
        guidance: the least and the largest guidance scale it was trained for; others are taken as these.
        num_train_timesteps: T, the model's.

    Raises:
        ValueError: settings out of range.
    """

    # The timestep that stands for the end of a run.
    last_timestep = 0.0
    # Whether it knows runs from pure noise on its own grid alone.
    whole_runs_only = False
    # What a policy can see, and how many numbers that is: all of its inputs, or the two timesteps alone.
    inputs: ClassVar[Mapping[str, int]] = {"run": 2 * FREQUENCIES * 4 + 1, "step": 2 * FREQUENCIES * 3}

    def __init__(
        self,
        order: int = 4,
        start: str = "unipc",
        learns: tuple[str, ...] = ("rows",),
        *,
        free: bool = False,
        sees: str = "run",
        bins: int = 0,
        hidden: int = 128,
        steps: tuple[int, int] = (1, 1000),
        guidance: tuple[float, float] = (1.0, 20.0),
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"The order of a policy is 1 to {MAX_ORDER}, not {order}.")
        if start not in STARTS:
            raise ValueError(f"Unknown start {start!r}; choose one of {', '.join(STARTS)}.")
        if unknown := set(learns) - DECISIONS.keys():
            raise ValueError(
                f"Nothing called {unknown.pop()!r} can be learned; there is {', '.join(DECISIONS)}."
            )
        if sees not in self.inputs:
            raise ValueError(f"A policy sees one of {', '.join(self.inputs)}, not {sees!r}.")
        if bins and (bins < 3 or bins % 2 == 0):
            raise ValueError(f"bins must be 0 or an odd number from 3 on, not {bins}.")
        self.settings: dict[str, Any] = {
            "order": order,
            "start": start,
            "learns": list(learns),
            "free": free,
            "sees": sees,
            "bins": bins,
            "hidden": hidden,
            "steps": list(steps),
            "guidance": list(guidance),
            "num_train_timesteps": num_train_timesteps,
        }
        self.order, self.start, self.free, self.sees, self.bins = order, start, free, sees, bins
        self.steps, self.guidance, self.num_train_timesteps = (
            tuple(steps),
            tuple(guidance),
            num_train_timesteps,
        )
        rows = (order if free else order - 1) if "rows" in learns else 0
        others = [name for name in DECISIONS if name != "rows" and name in learns]
        self.decisions = ("rows",) * rows + tuple(others)
        deviations = [DECISIONS[name][1] for name in self.decisions]
        self.make_network(hidden)
        if bins:
            values, prior = self.values_of_bins()
            self.register_buffer("values", values)
            self.register_buffer("prior", prior)
        else:
            self.log_std = nn.Parameter(torch.tensor(deviations).log())

    def make_network(self, hidden: int) -> None:
        """Create what is trained, such that all decisions start at zero."""
        last = nn.Linear(hidden, max(len(self.decisions), 1) * max(self.bins, 1))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first = nn.Linear(self.inputs[self.sees], hidden)
        self.mlp = nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)

    def values_of_bins(self) -> tuple[Tensor, Tensor]:
        """Return the values to choose from [decisions, bins], and the logits [bins] that they start with.

        Before it has learned anything the middle value, which is the classical one, is the likeliest.
        """
        at = torch.arange(self.bins) - self.bins // 2
        widths = torch.tensor([DECISIONS[name][0] for name in self.decisions])
        return widths[:, None] * at / (self.bins // 2), -0.5 * at**2 / 1.5**2

    def see(self, t: Tensor, t_next: Tensor, steps: Tensor, guidance: Tensor) -> Tensor:
        """Return the network's input [R, inputs]; see `forward`."""
        T = self.num_train_timesteps
        seen = [waves(t / T), waves(t_next / T), waves((t - t_next) / T)]
        if self.sees == "run":
            seen += [waves(steps.log() / math.log(1000)), guidance.clamp(*self.guidance)[..., None] / 10]
        return torch.cat(seen, dim=-1)

    def last_lam(self, schedule: NoiseSchedule) -> float:
        """Return the λ at which runs end."""
        return math.inf

    def forward(self, t: Tensor, t_next: Tensor, steps: Tensor, guidance: Tensor) -> Normal | Categorical:
        """The distribution of the actions, of which `offsets` makes what is added to the classical solver.

        Args:
            t, t_next: [R] timesteps, 0 to T; t_next is `last_timestep` in the last step.
            steps: [R] N.
            guidance: [R] guidance scale.

        Returns:
            Normal or Categorical over [R, len(self.decisions)].
        """
        out = self.mlp(self.see(t, t_next, steps, guidance))
        if self.bins:
            return Categorical(
                logits=out.unflatten(-1, (-1, self.bins))[..., : len(self.decisions), :] + self.prior
            )
        out = out[..., : len(self.decisions)]
        return Normal(out, self.log_std.exp().expand_as(out))

    def distribution(self, grid: TimeGrid, guidance: Tensor) -> Normal | Categorical:
        """The distribution of all actions of runs on a grid of N steps, [B, N, decisions].

        Args:
            guidance: [B].
        """
        now = nn.functional.pad(grid.timestep.float(), (0, 1), value=self.last_timestep).to(guidance.device)
        B, N = len(guidance), len(now) - 1
        steps = torch.full((B, N), float(N), device=guidance.device)
        return self(
            now[:-1].expand(B, N), now[1:].expand(B, N), steps, guidance.float()[:, None].expand(B, N)
        )

    def offsets(self, actions: Tensor) -> Tensor:
        """What actions [..., decisions] stand for: themselves, or the values of the bins chosen."""
        if not self.bins:
            return actions
        which = torch.arange(len(self.decisions), device=actions.device)
        return self.get_buffer("values")[which, actions]

    def likeliest(self, grid: TimeGrid, guidance: Tensor) -> Tensor:
        """The offsets [B, N, decisions] that it decides for; differentiable where actions are continuous."""
        distribution = self.distribution(grid, guidance)
        if isinstance(distribution, Normal):
            return distribution.mean
        return self.offsets(distribution.logits.argmax(dim=-1))

    def covers(self, steps: int) -> bool:
        """Whether it was trained for about this number of steps."""
        return self.steps[0] <= steps <= self.steps[1]

    def mask(self, steps: int) -> Tensor:
        """Which decisions [N, decisions] have an effect: outputs that exist, steps that end above σ = 0."""
        exist = torch.arange(1, steps + 1).clamp(max=self.order)[:, None]
        weights = torch.arange(self.decisions.count("rows")) < (exist if self.free else exist - 1)
        others = [torch.ones(steps, 1, dtype=torch.bool) for _ in self.decisions[weights.shape[1] :]]
        if "grid" in self.decisions:
            others[0][-1] = False
        return torch.cat([weights, *others], dim=1)

    def combines(self, schedule: NoiseSchedule) -> str:
        """Return the prediction type that the rows combine on this schedule.

        Raises:
            ValueError: ε on a flow.
        """
        if self.start in ("ab", "euler") and schedule.is_flow:
            return "flow_prediction"
        if STARTS[self.start] == "epsilon" and schedule.is_flow:
            raise ValueError("A flow does not know the noise at its start; use a policy that combines x0.")
        return STARTS[self.start]

    def start_weights(self, schedule: NoiseSchedule, given: TimeGrid, learned: TimeGrid) -> Tensor:
        """Return the weights that decisions are added to, [N, order] or [B, N, order].

        Args:
            given: the grid that decisions start from; here the weights are those of its steps.
            learned: the grid decided for, [B, N] timesteps.
        """
        return classical_weights(self.start, self.order, schedule, given)

    def tables(
        self, schedule: NoiseSchedule, grid: TimeGrid, offsets: Tensor, *, keep_grid: bool = False
    ) -> Tables:
        """The solvers that these offsets to the classical one make; differentiable in them.

        Args:
            grid: the grid that the decisions start from.
            offsets: [B, N, decisions]; those that `mask` leaves out are taken as zero.
            keep_grid: evaluate at the grid's own levels and timesteps, learned or not.
        """
        grid = TimeGrid(*(numbers.to(offsets.device) for numbers in grid))
        N, rows = len(grid.timestep), self.decisions.count("rows")
        offsets = offsets.double() * self.mask(N).to(offsets.device)
        decided = dict(zip(self.decisions[rows:], offsets[..., rows:].unbind(-1), strict=True))
        told, lam = grid.timestep, grid.lam[:-1].expand(len(offsets), N)
        if decided.keys() & {"grid", "times"} and not keep_grid:
            rounding = schedule.lam(told) - grid.lam[:-1]
            if "grid" in decided:
                h = lam.diff(dim=1) * decided["grid"][:, :-1].exp()
                highest = float(schedule.lam(0.0 if not schedule.is_flow else 1.0))
                lam = torch.cat([lam[:, :1], lam[:, :1] + h.cumsum(dim=1)], dim=1).clamp(max=highest)
            told = schedule.timestep(lam + rounding + decided.get("times", 0.0))
        levels = TimeGrid(told, nn.functional.pad(lam, (0, 1), value=self.last_lam(schedule)))
        weights = self.start_weights(schedule, grid, levels)
        weights = weights + nn.functional.pad(offsets[..., :rows], (0, self.order - rows))
        if not self.free:
            oldest = torch.arange(N, device=offsets.device).clamp(max=self.order - 1)
            rest = offsets[..., :rows].sum(dim=-1)
            weights = weights - rest[..., None] * nn.functional.one_hot(oldest, self.order)
        tables = multistep(weights, self.combines(schedule), schedule, levels)
        return replace(tables, a=tables.a + decided["state"]) if "state" in decided else tables

    @torch.no_grad()
    def plan(
        self, schedule: NoiseSchedule, grid: TimeGrid, guidance: float, *, keep_grid: bool = False
    ) -> Plan:
        """The policy's solver from a grid of any number of steps: its likeliest actions.

        Raises:
            ValueError: a policy in ε on a flow.
        """
        device = next(self.parameters()).device
        offsets = self.likeliest(grid, torch.tensor([float(guidance)], device=device))
        tables = self.tables(schedule, grid, offsets, keep_grid=keep_grid)
        return tables.plan(0, "consistency")

    def save(self, path: str | Path) -> None:
        """Write weights and settings as one safetensors file."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, path, metadata={"policy": json.dumps(self.settings)})


def classical_weights(start: str, order: int, schedule: NoiseSchedule, grid: TimeGrid) -> Tensor:
    """The weights [N, order], float64, of the solver that a policy starts from, newest output first.

    A start with more columns than the order keeps the newest, and the last of them takes what is missing to
    one: so order 2 of UniPC leaves out its corrector's third output.
    """

    def adams_bashforth(lam: Tensor) -> Tensor:
        alpha, sigma = schedule.levels(lam)
        return variable_adams_bashforth(sigma if schedule.is_flow else sigma / alpha, order)

    method = adams_bashforth if start == "ab" else METHODS[start].weights
    rows = starting_weights(method, STARTS[start], schedule, grid.lam)
    weights = nn.functional.pad(rows[:, :order], (0, max(order - rows.shape[1], 0)))
    weights[:, -1] += rows[:, order:].sum(dim=1)
    return weights

"""A policy without a network: its decisions are numbers in a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from solver.grids import TimeGrid
from solver.policy import Policy, classical_weights
from solver.schedule import NoiseSchedule


class TablePolicy(Policy):
    """(N, guidance) → all decisions of a run of N steps, interpolated between two guidance scales.

    The decisions of different numbers of steps share nothing, and each is linear in the logarithm of the
    guidance scale. The classical rows that decisions are added to are those of the learned grid, so a table
    that learns only the grid is exactly that classical solver there. Its rows need not sum to one. Rows of a
    grid fit no other grid, so it makes plans for whole runs on its own grid alone.

    Args:
        order, start, learns, num_train_timesteps: as for `Policy`.
        counts: the numbers of steps that it has decisions for.
        guidance: the least and the largest scale; decisions are kept at these two.

    Raises:
        ValueError: settings out of range.
    """

    inputs: ClassVar[Mapping[str, int]] = {"table": 0}
    whole_runs_only = True

    def __init__(
        self,
        order: int = 4,
        start: str = "dpm++2m",
        learns: tuple[str, ...] = ("rows", "grid", "times", "state"),
        *,
        counts: Sequence[int],
        guidance: tuple[float, float] = (3.0, 3.0),
        num_train_timesteps: int = 1000,
    ) -> None:
        if not counts or min(counts) < 1 or guidance[0] <= 0:
            raise ValueError(
                f"A table needs numbers of steps and guidance above 0, not {counts}, {guidance}."
            )
        self.counts = sorted(set(counts))
        super().__init__(
            order,
            start,
            learns,
            free=True,
            sees="table",
            steps=(self.counts[0], self.counts[-1]),
            guidance=guidance,
            num_train_timesteps=num_train_timesteps,
        )
        self.settings = {
            "sees": "table",
            "order": order,
            "start": start,
            "learns": list(learns),
            "counts": self.counts,
            "guidance": list(guidance),
            "num_train_timesteps": num_train_timesteps,
        }

    def make_network(self, hidden: int) -> None:
        shape = len(self.counts), 2, self.counts[-1], len(self.decisions)
        self.table = nn.Parameter(torch.zeros(shape))

    def covers(self, steps: int) -> bool:
        return steps in self.counts

    def shares(self, guidance: Tensor) -> Tensor:
        """Return how much each of the two scales' decisions weigh at guidance scales [B]: [B, 2]."""
        low, high = self.guidance
        span = math.log(high / low) or 1.0
        along = (guidance.clamp(low, high) / low).log() / span
        return torch.stack([1 - along, along], dim=-1)

    def distribution(self, grid: TimeGrid, guidance: Tensor) -> Normal:
        N = len(grid.timestep)
        decided = self.table[self.counts.index(N), :, :N]
        mean = torch.einsum("bk,knd->bnd", self.shares(guidance.float()), decided)
        return Normal(mean, self.log_std.exp().expand_as(mean))

    def start_weights(self, schedule: NoiseSchedule, given: TimeGrid, learned: TimeGrid) -> Tensor:
        return torch.stack(
            [
                classical_weights(self.start, self.order, schedule, TimeGrid(told, lam))
                for told, lam in zip(learned.timestep.expand(len(learned.lam), -1), learned.lam, strict=True)
            ]
        )

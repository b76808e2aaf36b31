"""Previews of a policy, their reward, and its mean on held-out pairs; shared by both training methods."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from solver.diffusion import LatentDiffusion
from solver.grids import TimeGrid, time_grid
from solver.plan import Tables
from solver.policy import Policy
from solver.sampling import Denoiser, sample
from solver.training.pairs import Pairs
from solver.training.rewards import Reward

GRID = "trailing"
"""The time grid that a policy's decisions start from; the targets use the same."""


@dataclass(frozen=True, eq=False)
class Task:
    """A model and a reward for its previews.

    Attributes:
        model: the frozen model.
        reward: similarity of a preview to its target.
        low_precision: run the network in bfloat16 (autocast), three times as fast on many CPUs. The solver's
            sums stay in float32; evaluation always uses float32.
        checkpointed: recompute activations in the backward pass, so that memory does not grow with the number
            of steps. Without it, training is a third faster.
    """

    model: LatentDiffusion
    reward: Reward
    low_precision: bool = False
    checkpointed: bool = True

    def check(self, **pairs: Pairs) -> None:
        """Check that pairs are this model's.

        Raises:
            ValueError: pairs of another model; the message calls them by their keyword.
        """
        for name, given in pairs.items():
            if given.model != self.model.fingerprint:
                raise ValueError(
                    f"The {name} pairs were made by another model; make them again with "
                    "`python -m solver pairs`."
                )

    def grid(self, steps: int) -> TimeGrid:
        """Return the grid that decisions for this number of steps start from."""
        return time_grid(GRID, self.model.schedule, steps)

    def autocast(self) -> torch.autocast:
        """Return a context for the precision of the networks."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.low_precision)

    def latents(self, tables: Tables, pairs: Pairs) -> Tensor:
        """Sample latents [n, C, H, W] from the pairs' noise with the solvers of `tables`."""
        return sample(tables, self.denoiser(pairs), self.model.noise(pairs.seeds))

    def denoiser(self, pairs: Pairs) -> Denoiser:
        """Return the network for these pairs, in the precision of training."""
        network = self.model.denoiser([p.prompt for p in pairs.prompts], pairs.guidance, pairs.reference)

        def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
            with self.autocast():
                if self.checkpointed and torch.is_grad_enabled():  # Chen et al. 2016, arXiv 1604.06174
                    return checkpoint(network, x, timesteps, use_reentrant=False)
                return network(x, timesteps)

        return denoise

    def features(self, latents: Tensor) -> Tensor:
        """Decode latents and return the reward's features of the pictures."""
        with self.autocast():
            pictures = self.model.decode(latents.to(self.model.device)).float()
        return self.reward.features(pictures.clamp(0, 1))

    def similarity(self, latents: Tensor, target_features: Tensor) -> Tensor:
        """Return the reward [n] of latents against the features of their targets."""
        return self.reward.similarity(self.features(latents), target_features)


@torch.no_grad()
def validate(
    policy: Policy, task: Task, pairs: Pairs, steps: Sequence[int], batch: int = 16
) -> dict[int, float]:
    """Return the mean reward of the deterministic policy for each number of steps."""
    rewards: dict[int, list[Tensor]] = {N: [] for N in steps}
    for start in range(0, len(pairs), batch):
        part = pairs.take(range(start, min(start + batch, len(pairs))))
        target = task.features(part.latents)
        for N in steps:
            grid = task.grid(N)
            tables = policy.tables(task.model.schedule, grid, policy.likeliest(grid, part.guidance))
            rewards[N].append(task.similarity(task.latents(tables, part), target))
    return {N: float(torch.cat(values).mean()) for N, values in rewards.items()}


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Save the state of a training in one go: an interrupted one leaves the state from before."""
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)

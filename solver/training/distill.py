"""Training by gradient through the solver, for differentiable rewards; the paper's baseline Ours-Distill."""

from __future__ import annotations

import torch

from solver.policy import Policy
from solver.training.pairs import Pairs
from solver.training.task import Task


def distill(
    policy: Policy, optimizer: torch.optim.Optimizer, task: Task, pairs: Pairs, steps: int
) -> dict[str, float]:
    """One step of gradient ascent on the mean reward of `pairs` with `steps` steps.

    The gradient runs from the decoded pictures back through every evaluation of the frozen network.

    Returns:
        Figures for the log.

    Raises:
        ValueError: a reward that has no gradient, or a policy that chooses from bins.
    """
    if not task.reward.differentiable:
        raise ValueError(f"{task.reward.name} has no gradient to follow; train with PPO.")
    if policy.bins:
        raise ValueError("A choice from bins has no gradient; train with PPO, or with bins=0.")
    with torch.no_grad():
        target = task.features(pairs.latents)
    grid = task.grid(steps)
    tables = policy.tables(task.model.schedule, grid, policy.likeliest(grid, pairs.guidance))
    reward = task.similarity(task.latents(tables, pairs), target).mean()
    optimizer.zero_grad()
    (-reward).backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return {"reward": reward.item(), "gradient_norm": norm.item()}

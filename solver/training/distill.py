"""Train a policy by gradient through the solver; the paper's baseline Ours-Distill (arXiv 2512.13592)."""

from __future__ import annotations

import torch

from solver.policy import Policy
from solver.training.pairs import Pairs
from solver.training.task import Task


def distill(
    policy: Policy, optimizer: torch.optim.Optimizer, task: Task, pairs: Pairs, steps: int
) -> dict[str, float]:
    """Make one step of gradient ascent on the mean reward of `pairs` with `steps` solver steps.

    The gradient passes from the decoded pictures through every evaluation of the frozen network.

    Returns:
        Values for the log.

    Raises:
        ValueError: a reward without a gradient, or a policy with bins.
    """
    if not task.reward.differentiable:
        raise ValueError(f"The reward {task.reward.name} has no gradient; train with --method ppo.")
    if policy.bins:
        raise ValueError("A policy with bins has no gradient; train with --method ppo or --bins 0.")
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

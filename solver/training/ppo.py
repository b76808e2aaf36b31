"""Training by proximal policy optimisation (Schulman et al. 2017), as in the ConsistencySolver paper.

A rollout is a preview: the policy draws the decisions of every step, the frozen network is run with the
solver that they make, and the reward is the likeness of the decoded picture to the full-step one. Nothing has
to be differentiable. Decisions of a step do not depend on what earlier steps found, so a rollout is one draw
of a table; the reward at its end is every step's return, and its advantage is what it is better than
other tables on the same noise, prompt and number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, Normal

from solver.policy import Policy
from solver.training.pairs import Pairs
from solver.training.task import Task


@dataclass(frozen=True)
class PPOSettings:
    """group: tables drawn for each pair. epochs, minibatches: passes over the rollouts, and parts of each.
    clip: ε of eq. 7. entropy: weight of the bonus of eq. 9. target_kl: where an update ends early.
    rollouts_at_once: network batch."""

    group: int = 16
    epochs: int = 4
    minibatches: int = 4
    clip: float = 0.2
    entropy: float = 1e-3
    target_kl: float = 0.03
    rollouts_at_once: int = 64


@torch.no_grad()
def rollouts(
    policy: Policy, task: Task, pairs: Pairs, steps: int, settings: PPOSettings
) -> tuple[Tensor, Tensor]:
    """Draw `group` tables for each of P pairs and run them.

    Returns:
        Actions [P · group, N, decisions] and rewards [P, group].
    """
    grid, schedule = task.grid(steps), task.model.schedule
    target = task.features(pairs.latents)
    actions, rewards = [], []
    all_rollouts = [i for i in range(len(pairs)) for _ in range(settings.group)]
    for start in range(0, len(all_rollouts), settings.rollouts_at_once):
        which = all_rollouts[start : start + settings.rollouts_at_once]
        part = pairs.take(which)
        drawn = policy.distribution(grid, part.guidance.to(task.model.device)).sample()
        latents = task.latents(policy.tables(schedule, grid, policy.offsets(drawn)), part)
        actions.append(drawn)
        rewards.append(task.similarity(latents, target[which]))
    return torch.cat(actions), torch.cat(rewards).view(len(pairs), settings.group)


def advantages(rewards: Tensor) -> Tensor:
    """Rewards [P, group] of one number of steps, normalised within each pair, [P · group].

    Pairs differ in how well any solver does on them, far more than tables do on one pair. A pair on which all
    tables did equally well teaches nothing and has zeros.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return (centred / (rewards.std(dim=1, keepdim=True) + 1e-8)).flatten()


def step_log_prob(distribution: Normal | Categorical, actions: Tensor, mask: Tensor) -> Tensor:
    """Log-probability [B, N] of each step's decisions; those without effect are left out."""
    return (distribution.log_prob(actions) * mask).sum(dim=-1)


def ppo(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    task: Task,
    pairs: Pairs,
    steps: int,
    settings: PPOSettings,
) -> dict[str, float]:
    """One iteration: rollouts, then several epochs of clipped updates on them.

    Returns:
        Figures for the log: reward, its spread within pairs, approx_kl (per step), clip_fraction, entropy.
    """
    actions, rewards = rollouts(policy, task, pairs, steps, settings)
    advantage = advantages(rewards)
    grid, mask = task.grid(steps), policy.mask(steps).to(actions.device)
    guidance = pairs.guidance.to(actions.device).repeat_interleave(settings.group)
    with torch.no_grad():
        old_log_prob = step_log_prob(policy.distribution(grid, guidance), actions, mask)

    figures: dict[str, list[float]] = {}
    for _ in range(settings.epochs):
        for part in torch.randperm(len(actions), device=actions.device).chunk(settings.minibatches):
            distribution = policy.distribution(grid, guidance[part])
            log_ratio = step_log_prob(distribution, actions[part], mask) - old_log_prob[part]
            ratio = log_ratio.exp()
            A = advantage[part, None]
            clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            objective = torch.minimum(ratio * A, clipped * A).mean()
            entropy = (distribution.entropy() * mask).sum(dim=-1).mean()
            optimizer.zero_grad()
            (-objective - settings.entropy * entropy).backward()
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimizer.step()
            with torch.no_grad():
                # Schulman's low-variance estimate, http://joschu.net/blog/kl-approx.html
                kl = (ratio - 1 - log_ratio).mean()
                seen = {
                    "approx_kl": kl,
                    "clip_fraction": ((ratio - 1).abs() > settings.clip).float().mean(),
                    "entropy": entropy,
                    "gradient_norm": norm,
                }
            for name, value in seen.items():
                figures.setdefault(name, []).append(value.item())
        if figures["approx_kl"][-1] > settings.target_kl:
            break
    means = {name: sum(values) / len(values) for name, values in figures.items()}
    return {"reward": float(rewards.mean()), "spread": float(rewards.std(dim=1).mean()), **means}

"""Train a policy by proximal policy optimisation (Schulman et al. 2017), as in arXiv 2512.13592.

A rollout is a preview: the policy samples the decisions of every step, the frozen network runs with the
resulting solver, and the reward is the similarity of the decoded preview to the full-step picture. It need
not be differentiable. The decisions of a step do not depend on the state, so a rollout is one sample of a
table. The reward at its end is the return of every step; its advantage is relative to the other tables on the
same noise, prompt and number of steps.
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
    """Hyperparameters of PPO; equations are those of Schulman et al. 2017.

    Attributes:
        group: tables sampled for each pair.
        epochs: passes over the rollouts of an iteration.
        minibatches: parts of a pass.
        clip: ε of the clipped objective, eq. 7.
        entropy: weight of the entropy bonus, eq. 9.
        target_kl: an iteration ends early when the KL divergence exceeds it.
        gradient_norm: the largest norm of an update's gradient; a longer one is shortened.
        rollouts_at_once: batch of a network call.
    """

    group: int = 16
    epochs: int = 4
    minibatches: int = 4
    clip: float = 0.2
    entropy: float = 1e-3
    target_kl: float = 0.03
    gradient_norm: float = 0.5
    rollouts_at_once: int = 64


@torch.no_grad()
def rollouts(
    policy: Policy, task: Task, pairs: Pairs, steps: int, settings: PPOSettings
) -> tuple[Tensor, Tensor]:
    """Sample `group` tables for each of P pairs, and run them.

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
        action = policy.distribution(grid, part.guidance.to(task.model.device)).sample()
        latents = task.latents(policy.tables(schedule, grid, policy.offsets(action)), part)
        actions.append(action)
        rewards.append(task.similarity(latents, target[which]))
    return torch.cat(actions), torch.cat(rewards).view(len(pairs), settings.group)


def advantages(rewards: Tensor) -> Tensor:
    """Normalise rewards [P, group] of one number of steps within each pair; returns [P · group].

    Rewards differ far more between pairs than between the tables of a pair. A pair whose tables all have the
    same reward gets zeros.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return (centred / (rewards.std(dim=1, keepdim=True) + 1e-8)).flatten()


def step_log_prob(distribution: Normal | Categorical, actions: Tensor, mask: Tensor) -> Tensor:
    """Return the log-probability [B, N] of each step's decisions, without those that have no effect."""
    return (distribution.log_prob(actions) * mask).sum(dim=-1)


def ppo(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    task: Task,
    pairs: Pairs,
    steps: int,
    settings: PPOSettings,
) -> dict[str, float]:
    """Run one iteration: rollouts, then several epochs of clipped updates.

    Returns:
        Values for the log: reward, its spread within pairs, approx_kl (per step), clip_fraction, entropy.
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
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.gradient_norm)
            optimizer.step()
            with torch.no_grad():
                # Schulman's low-variance estimate, http://joschu.net/blog/kl-approx.html
                kl = (ratio - 1 - log_ratio).mean()
                values = {
                    "approx_kl": kl,
                    "clip_fraction": ((ratio - 1).abs() > settings.clip).float().mean(),
                    "entropy": entropy,
                    "gradient_norm": norm,
                }
            for name, value in values.items():
                figures.setdefault(name, []).append(value.item())
        if figures["approx_kl"][-1] > settings.target_kl:
            break
    means = {name: sum(values) / len(values) for name, values in figures.items()}
    return {"reward": float(rewards.mean()), "spread": float(rewards.std(dim=1).mean()), **means}

"""The training of ConsistencySolver (arXiv 2512.13592) in one file: `python -m examples.train_ppo`.

A policy chooses the weights of a linear multistep solver from (t, t_next). The reward is the PSNR of the
decoded preview to the decoded 40-step picture of the same noise. It trains on the embedded model. To train a
solver to use, take `consistency-solver train`: it resumes, validates, batches and writes what pipelines load.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import checkpoints
from solver import make_plan, psnr, sample
from solver.diffusion import LatentDiffusion, load_diffusion
from solver.grids import time_grid
from solver.multistep import multistep
from solver.training.pairs import read_prompts

LANDSCAPES = Path(checkpoints.__file__).parent / "landscapes"


@dataclass(frozen=True)
class Settings:
    """The paper's settings, but for what would take days on a CPU.

    Attributes:
        order: m; a step combines the newest m network outputs.
        bins: K, values that a weight is chosen from.
        steps: numbers of steps, of which each iteration draws one (paper: 2 … 15).
        pairs: prompts with a noise and a full-step picture each (paper: 2,000).
        rollouts: previews of the one pair that an iteration draws (paper: 80).
        iterations: of rollouts and an update (paper: 3,000).
        epochs: passes over the rollouts; in the first all ratios are 1, so clipping starts with the second.
        clip: ε of PPO.
        entropy: weight of the entropy bonus.
        guidance: scale of previews and full-step pictures.
        target_steps: N of the full-step pictures.
    """

    order: int = 4
    bins: int = 11
    hidden: int = 256
    steps: Sequence[int] = (4, 5, 6, 8)
    pairs: int = 16
    rollouts: int = 16
    iterations: int = 200
    epochs: int = 4
    clip: float = 0.2
    entropy: float = 1e-3
    learning_rate: float = 1e-4
    guidance: float = 3.0
    target_steps: int = 40
    seed: int = 0


class PaperPolicy(nn.Module):
    """(t, t_next) → a categorical distribution over K values for each of m - 1 weights."""

    values: Tensor  # [m - 1, K]

    def __init__(self, order: int, bins: int, hidden: int) -> None:
        super().__init__()
        spans = [(1, 3), (-2, 0), *[(-1, 1)] * order][: order - 1]
        self.register_buffer("values", torch.stack([torch.linspace(*span, bins) for span in spans]))
        last = nn.Linear(hidden, (order - 1) * bins)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)

    def forward(self, timestep: Tensor) -> Categorical:
        """Timesteps [N] of a run → the distribution over [N, m - 1]; the last step has t_next = -1."""
        t_next = nn.functional.pad(timestep[1:], (0, 1), value=-1.0)
        logits = self.mlp(torch.stack([timestep, t_next], dim=-1) / 999)
        return Categorical(logits=logits.unflatten(-1, self.values.shape))

    def weights(self, actions: Tensor) -> Tensor:
        """Bins [B, N, m - 1] → weights [B, N, m], newest output first, which sum to one in each step."""
        chosen = self.values[torch.arange(len(self.values)), actions] * used(
            actions.shape[1], actions.shape[2]
        )
        oldest = torch.arange(actions.shape[1]).clamp(max=actions.shape[2])
        rest = 1 - chosen.sum(dim=-1, keepdim=True)
        return nn.functional.pad(chosen, (0, 1)) + rest * nn.functional.one_hot(oldest, len(self.values) + 1)


def used(steps: int, decisions: int) -> Tensor:
    """Which decisions [N, m - 1] have an effect: step i has i + 1 outputs, and the oldest gets the rest."""
    return torch.arange(decisions) < torch.arange(steps)[:, None]


def log_prob(distribution: Categorical, actions: Tensor) -> Tensor:
    """Log-probability [B, N] of each step's decisions that have an effect."""
    return (distribution.log_prob(actions) * used(*actions.shape[1:])).sum(dim=-1)


def decode(model: LatentDiffusion, latents: Tensor) -> Tensor:
    """Latents [B, C, H, W] → pictures [B, 3, H', W'] in 0 … 1."""
    return model.decode(latents).float().clamp(0, 1)


def train(settings: Settings) -> list[dict[str, float]]:
    """Train a policy; print and return the figures of each iteration."""
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    model = load_diffusion(LANDSCAPES)
    prompts = [p.prompt for p in read_prompts(LANDSCAPES / "prompts" / "train.jsonl")[: settings.pairs]]
    policy = PaperPolicy(settings.order, settings.bins, settings.hidden)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate)
    full = make_plan("dpm++2m", settings.target_steps, model.schedule)
    targets: dict[int, Tensor] = {}
    log = []
    for iteration in range(settings.iterations):
        # Rollouts: previews of one noise, each with weights of its own.
        N, pair = rng.choice(settings.steps), rng.randrange(len(prompts))
        grid, B = time_grid("trailing", model.schedule, N), settings.rollouts
        timestep = grid.timestep.float()
        with torch.no_grad():
            if pair not in targets:
                denoise = model.denoiser(prompts[pair : pair + 1], torch.tensor([settings.guidance]))
                targets[pair] = decode(model, sample(full, denoise, model.noise([pair])))
            distribution = policy(timestep)
            actions = distribution.sample((B,))
            old = log_prob(distribution, actions)
            tables = multistep(policy.weights(actions).double(), "epsilon", model.schedule, grid)
            denoise = model.denoiser([prompts[pair]] * B, torch.full((B,), settings.guidance))
            reward = psnr(decode(model, sample(tables, denoise, model.noise([pair] * B))), targets[pair])
            advantage = ((reward - reward.mean()) / (reward.std() + 1e-8))[:, None]

        # Clipped updates. The reward at the end of a rollout is the return of each of its steps.
        for _ in range(settings.epochs):
            distribution = policy(timestep)
            log_ratio = log_prob(distribution, actions) - old
            ratio = log_ratio.exp()
            clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            objective = torch.minimum(ratio * advantage, clipped * advantage).mean()
            entropy = (distribution.entropy() * used(N, settings.order - 1)).sum(dim=-1).mean()
            optimizer.zero_grad()
            (-objective - settings.entropy * entropy).backward()
            optimizer.step()

        figures = {
            "reward": reward.mean().item(),  # dB
            "approx_kl": (ratio - 1 - log_ratio).mean().item(),  # Schulman's low-variance estimate
            "clip_fraction": ((ratio - 1).abs() > settings.clip).float().mean().item(),
            "entropy": entropy.item(),
        }
        log.append(figures)
        print(
            f"{iteration:4} N={N:<3}", *(f"{name} {value:.4f}" for name, value in figures.items()), flush=True
        )
    return log


if __name__ == "__main__":
    train(Settings())

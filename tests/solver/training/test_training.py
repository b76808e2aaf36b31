"""Rollouts are the plans they stand for; gradient and PPO make previews better; runs resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from solver import LearnedSolver, NoiseSchedule, Policy, make_plan, noise_for_seed, psnr, sample
from solver.grids import time_grid
from solver.multistep import METHODS, multistep
from solver.training.distill import distill
from solver.training.pairs import REFINEMENT, Pairs, Prompt
from solver.training.ppo import PPOSettings, advantages, ppo, rollouts, step_log_prob
from solver.training.rewards import Reward
from solver.training.task import Task, validate
from solver.training.train import train
from tests.solver.toys import FLOW, NOISE, SD, network, relative_error

S = NoiseSchedule.from_config(SD)
TABLE = S.lam(range(1000)).float()
PSNR = Reward("psnr", True, lambda pictures: pictures, psnr)
EVERYTHING = ("rows", "grid", "times", "state")


class Mixture:
    """A perfect noise predictor for data at two points, ±1 in every pixel, shrunk by the guidance scale."""

    schedule, device, fingerprint = S, torch.device("cpu"), "two points"

    def noise(self, seeds: list[int]) -> Tensor:
        return torch.stack([noise_for_seed(seed, (3, 2, 2)) for seed in seeds])

    def denoiser(self, prompts: list[str], guidance: Tensor, reference: None = None) -> Any:
        def denoise(x: Tensor, t: Tensor) -> Tensor:
            below = t.detach().floor().clamp(max=998).long()
            lam = torch.lerp(TABLE[below], TABLE[below + 1], t - below)[:, None, None, None]
            alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
            x0 = torch.tanh(alpha * x / (sigma**2 + 0.05)) * (3 / guidance[:, None, None, None])
            return (x - alpha * x0) / sigma

        return denoise

    def decode(self, latents: Tensor) -> Tensor:
        return latents / 4 + 0.5


MODEL: Any = Mixture()
TASK = Task(MODEL, PSNR)


def make(count: int, first_seed: int = 0) -> Pairs:
    seeds = list(range(first_seed, first_seed + count))
    guidance = torch.tensor([2.5, 3.5] * count)[:count]
    latents = sample(make_plan("dpm++2m", 40, S), MODEL.denoiser([], guidance), MODEL.noise(seeds))
    return Pairs([Prompt("two points")] * count, seeds, guidance, latents, REFINEMENT, MODEL.fingerprint)


PAIRS, HELD_OUT = make(32), make(16, 1000)


@pytest.mark.parametrize(
    "config", [SD, {**SD, "prediction_type": "v_prediction"}, FLOW], ids=["eps", "v", "flow"]
)
@pytest.mark.parametrize("solver", ["ddim", "dpm++3m", "unipc"])
def test_tables_are_sampled_as_their_plan_is(config: dict[str, Any], solver: str) -> None:
    schedule = NoiseSchedule.from_config(config)
    grid = time_grid("trailing", schedule, 6)
    tables = multistep(METHODS[solver].weights(grid.lam)[None], "sample", schedule, grid)
    expected, seen = sample(make_plan(solver, 6, config), network, NOISE), list[Tensor]()
    result = sample(tables, network, NOISE, lambda i, picture: seen.append(picture))
    assert relative_error(result, expected) < 1e-5
    assert len(seen) == 6 and relative_error(seen[-1], expected) < 1e-5


def test_tables_of_a_batch_are_its_samples_tables() -> None:
    """One batch with a table for each sample equals one run for each."""
    policy, grid = Policy(3, "unipc", EVERYTHING), time_grid("trailing", S, 5)
    offsets = 0.1 * torch.randn(3, 5, len(policy.decisions), generator=torch.Generator().manual_seed(3))
    together = sample(policy.tables(S, grid, offsets), network, NOISE)
    for i in range(3):
        tables = policy.tables(S, grid, offsets[i : i + 1])
        alone = sample(tables, network, NOISE[i : i + 1])
        assert relative_error(together[i : i + 1], alone) < 1e-5
        plan = tables.plan(0, "consistency")
        assert relative_error(together[i : i + 1], sample(plan, network, NOISE[i : i + 1])) < 1e-5


def test_gradients_are_those_of_finite_differences() -> Any:
    policy, grid = Policy(3, "unipc", EVERYTHING, free=True), time_grid("trailing", S, 4)
    offsets = torch.zeros(1, 4, len(policy.decisions), dtype=torch.float64, requires_grad=True)

    def checkpointed(x: Tensor, t: Tensor) -> Tensor:
        return checkpoint(network, x, t, use_reentrant=False)

    def value(offsets: Tensor) -> Tensor:
        return sample(policy.tables(S, grid, offsets), checkpointed, NOISE).double().square().mean()

    value(offsets).backward()
    assert offsets.grad is not None
    for i, j in np.argwhere(policy.mask(4).numpy()):
        if (i, policy.decisions[j]) == (0, "times"):
            continue  # the network's first timestep is at the end of the schedule: it has one side only
        step = torch.zeros_like(offsets)
        step[0, i, j] = 1e-2
        numeric = (value(offsets.detach() + step) - value(offsets.detach() - step)) / 2e-2
        assert float(offsets.grad[0, i, j]) == pytest.approx(float(numeric), rel=0.05, abs=1e-3)


def test_gradients_flow_only_into_tables_that_need_them() -> None:
    noise = NOISE.clone().requires_grad_()
    assert not sample(make_plan("unipc", 4, SD), network, noise).requires_grad
    policy, grid = Policy(3, "unipc"), time_grid("trailing", S, 4)
    tables = policy.tables(S, grid, policy.likeliest(grid, torch.tensor([3.0])))
    assert sample(tables, network, NOISE).requires_grad
    with torch.no_grad():
        tables = policy.tables(S, grid, policy.likeliest(grid, torch.tensor([3.0])))
    assert not sample(tables, network, NOISE).requires_grad


def test_gradient_makes_previews_better_at_every_number_of_steps() -> None:
    torch.manual_seed(0)
    policy = Policy(4, "unipc", ("rows", "grid", "times"), steps=(4, 6))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-4)
    before = validate(policy, TASK, HELD_OUT, [4, 6])
    for i in range(40):
        distill(policy, optimizer, TASK, PAIRS, 4 + 2 * (i % 2))
    after = validate(policy, TASK, HELD_OUT, [4, 6])
    assert all(after[N] > before[N] + 2 for N in (4, 6)), (before, after)


@pytest.mark.parametrize("bins", [0, 11])
def test_ppo_makes_previews_better_without_a_gradient(bins: Any) -> Any:
    torch.manual_seed(0)

    def blind(a: Tensor, b: Tensor) -> Tensor:
        return psnr(a, b).mul(100).round().div(100).detach()

    task = Task(MODEL, Reward("rounded", False, PSNR.features, blind))
    policy = Policy(3, "unipc", ("rows",), bins=bins, steps=(4, 4))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    before = validate(policy, task, HELD_OUT, [4])[4]
    for _ in range(15):
        figures = ppo(policy, optimizer, task, PAIRS.take(range(8)), 4, PPOSettings())
    assert validate(policy, task, HELD_OUT, [4])[4] > before + 0.3
    assert {"approx_kl", "clip_fraction", "entropy", "reward"} <= figures.keys()
    assert all(math.isfinite(v) for v in figures.values())


def test_advantages_compare_tables_on_one_pair_alone() -> None:
    rewards = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    A = advantages(rewards).view(5, 8)
    torch.testing.assert_close(A.mean(dim=1), torch.zeros(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(A.std(dim=1), torch.ones(5), rtol=0, atol=1e-5)
    easier = rewards * torch.tensor([[1.0], [2.0], [0.1], [1.0], [5.0]]) + torch.arange(5.0)[:, None]
    torch.testing.assert_close(advantages(easier).view(5, 8), A, rtol=1e-4, atol=1e-5)
    assert not advantages(torch.ones(2, 4)).any()


def test_decisions_without_effect_enter_no_ratio() -> None:
    policy, grid = Policy(4, "unipc", EVERYTHING), time_grid("trailing", S, 5)
    guidance, mask = torch.tensor([3.0]), policy.mask(5)
    distribution = policy.distribution(grid, guidance)
    actions = distribution.sample()
    changed = torch.where(mask, actions, actions + 5)
    expected = step_log_prob(distribution, actions, mask)
    torch.testing.assert_close(step_log_prob(distribution, changed, mask), expected)
    moved = torch.where(mask, actions + 0.1, actions)
    assert not torch.isclose(step_log_prob(distribution, moved, mask), expected).any()


def test_rollouts_reward_the_tables_they_report() -> None:
    """Each action comes with the reward of its own table on its own pair."""
    torch.manual_seed(1)
    policy, pairs = Policy(3, "unipc", EVERYTHING), PAIRS.take([3, 7, 11])
    actions, rewards = rollouts(policy, TASK, pairs, 5, PPOSettings(group=4, rollouts_at_once=8))
    assert actions.shape[:2] == (12, 5) and rewards.shape == (3, 4)
    for i in range(12):
        pair = pairs.take([i // 4])
        latents = TASK.latents(policy.tables(S, TASK.grid(5), actions[i : i + 1]), pair)
        alone = TASK.similarity(latents, TASK.features(pair.latents))
        torch.testing.assert_close(alone[0], rewards[i // 4, i % 4], rtol=1e-3, atol=1e-3)


def test_what_has_no_gradient_is_refused() -> None:
    blind, policy = Task(MODEL, Reward("labels", False, PSNR.features, psnr)), Policy(2)
    optimizer = torch.optim.Adam(policy.parameters())
    with pytest.raises(ValueError, match="labels has no gradient; train with --method ppo"):
        distill(policy, optimizer, blind, PAIRS, 4)
    with pytest.raises(ValueError, match="policy with bins has no gradient"):
        distill(Policy(2, bins=5), optimizer, TASK, PAIRS, 4)


def run(out: Path, iterations: int, method: str = "distill", **changes: Any) -> tuple[Policy, float]:
    torch.manual_seed(5)
    policy = Policy(3, "unipc", hidden=16, steps=(4, 5))
    options: dict[str, Any] = {
        "steps": [4, 5],
        "iterations": iterations,
        "batch": 4,
        "learning_rate": 3e-3,
        "validate_every": 4,
        **changes,
    }
    return policy, train(policy, TASK, PAIRS, HELD_OUT, out, method=method, **options)


@pytest.mark.parametrize("method", ["distill", "ppo"])
def test_training_resumes_where_it_was(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Cut off in the middle of an iteration, a run ends with the weights of an uninterrupted one."""
    whole, reward = run(tmp_path / "whole", 12, method)
    calls = 0

    def cut_off(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return (distill if method == "distill" else ppo)(*args)

    monkeypatch.setattr(f"solver.training.train.{method}", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 12, method)
    resumed, again = run(tmp_path / "cut", 12, method)
    assert again == reward
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_training_keeps_the_weights_that_did_best(tmp_path: Path) -> None:
    """Even where training makes everything worse, the solver is no worse than it was."""
    start = validate(Policy(3, "unipc", steps=(4, 5)), TASK, HELD_OUT, [4, 5])
    policy, best = run(tmp_path, 8, learning_rate=3.0)
    assert best >= np.mean(list(start.values())) - 1e-4
    after = validate(policy, TASK, HELD_OUT, [4, 5])
    assert np.mean(list(after.values())) == pytest.approx(best, abs=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "validation" in line] == [0, 4, 8]
    assert {line["N"] for line in lines if "N" in line} == {4, 5}
    assert list((tmp_path / "tensorboard").iterdir())


def test_pairs_of_another_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mixture, "fingerprint", "retrained")
    with pytest.raises(ValueError, match="training pairs were made by another model"):
        run(tmp_path, 4)


def test_trained_policy_becomes_the_solver_of_its_steps(tmp_path: Path) -> None:
    policy, _ = run(tmp_path, 8)
    learned = LearnedSolver((), policy.eval())
    assert make_plan("consistency", 4, S, learned=learned) != make_plan("consistency", 4, S)
    assert make_plan("consistency", 40, S, learned=learned) == make_plan("consistency", 40, S)

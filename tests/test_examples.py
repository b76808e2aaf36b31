"""The examples run, and do what they say."""

import math

import torch

from examples.train_ppo import PaperPolicy, Settings, train, used


def test_ppo_example_trains_for_two_iterations() -> None:
    # A learning rate high enough to move all probabilities within two epochs.
    settings = Settings(
        steps=(3,), pairs=1, rollouts=3, iterations=2, epochs=2, hidden=8, target_steps=4, learning_rate=0.1
    )
    first, second = train(settings)
    for figures in (first, second):
        assert all(map(math.isfinite, figures.values()))
        assert 0 < figures["reward"] < 60 and 0 <= figures["clip_fraction"] <= 1
    assert first["approx_kl"] > 0
    # Three steps with 0, 1 and 2 decisions from 11 equally likely values, on average one to a step.
    assert 0 < second["entropy"] < math.log(11)


def test_weights_of_the_papers_policy_sum_to_one_over_existing_outputs() -> None:
    policy = PaperPolicy(order=4, bins=11, hidden=8)
    weights = policy.weights(torch.randint(11, (5, 6, 3)))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(5, 6))
    assert (weights[:, 0] == torch.tensor([1.0, 0, 0, 0])).all()
    assert (weights[:, 1, 2:] == 0).all() and (weights[:, 2, 3:] == 0).all()
    assert used(5, 3).sum(dim=1).tolist() == [0, 1, 2, 3, 3]

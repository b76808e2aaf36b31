"""Rewards: similarities of a preview to the full-step picture of the same noise.

    reward = make_reward("psnr + 20*clip")
    target = reward.features(full_step)                        # once for many previews
    values = reward.similarity(reward.features(previews), target)

`REWARDS` lists the names that a sum may contain.
"""

from solver.training.rewards.make import REWARDS, Kind, Term, make_reward, parse
from solver.training.rewards.reward import Part, Reward, RewardError, combine

__all__ = ["REWARDS", "Kind", "Part", "Reward", "RewardError", "Term", "combine", "make_reward", "parse"]

"""Training: pairs, rewards, PPO and gradient."""

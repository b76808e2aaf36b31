"""Training: pairs of noise and full-step picture, rewards, and the two methods, PPO and distillation."""

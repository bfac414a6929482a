"""Differentiable rewards: what an image is worth to its prompt, and how it would be worth more."""

from npnet_training.rewards.registry import Reward, load_reward, reward_names

__all__ = ["Reward", "load_reward", "reward_names"]

"""Rewards by name: built in, or from other packages by the entry point group `npnet.rewards`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from npnet_training.errors import RewardError
from npnet_training.plugins import import_plugin, plugin_names

GROUP = "npnet.rewards"
BUILT_IN = {
    "clipscore": "npnet_training.rewards.clip:CLIPReward",
    "pickscore": "npnet_training.rewards.clip:PickReward",
    "shapes": "npnet_training.shapes.reward:ShapesReward",
    "scenes": "npnet_training.scenes.reward:ScenesReward",
}


class Reward(Protocol):
    """Made as `Class(device=..., offline=...)`."""

    def reward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """A number for each image and its prompt, higher is better, differentiable in the images.

        Args:
            images: (B, 3, height, width) float32 in [0, 1].
            prompts: B of them.

        Returns:
            (B,), of which no number depends on the other images.
        """
        ...


def reward_names() -> list[str]:
    """All that `load_reward` takes."""
    return plugin_names(BUILT_IN, GROUP)


def load_reward(name: str, *, device: str | torch.device = "cpu", offline: bool = False) -> Reward:
    """The reward of that name.

    Args:
        name: built in, or an entry point of the group `npnet.rewards`.
        device: where it runs.
        offline: take its weights from the hub's cache only.

    Raises:
        RewardError: unknown, or it cannot be loaded.
    """
    if name not in reward_names():
        raise RewardError(f"unknown reward {name!r}: expected one of {', '.join(reward_names())}")
    try:
        reward: Reward = import_plugin(name, BUILT_IN, GROUP)(device=device, offline=offline)
    except (ImportError, OSError, ValueError, AttributeError, TypeError) as error:
        raise RewardError(f"the reward {name} cannot be loaded: {error}") from error
    if not callable(getattr(reward, "reward", None)):
        raise RewardError(f"the reward {name} has no method reward(images, prompts)")
    return reward

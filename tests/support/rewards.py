"""Rewards for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Redness:
    """How much redder than blue an image is; HyperNoise's toy reward is alike."""

    def __init__(self, **options: Any) -> None: ...

    def reward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return 10 * (images[:, 0] - images[:, 2]).mean((1, 2))


class Blind(Redness):
    @torch.no_grad()
    def reward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().reward(images, prompts)


class Single(Redness):
    def reward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().reward(images, prompts).mean()

"""Training scenes of the shapes world, rendered once."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from npnet_training.shapes.grammar import draw_facts
from npnet_training.shapes.render import render


@dataclass(frozen=True)
class Scenes:
    """Images of the training split, (N, 3, 32, 32) float32 in [-1, 1], and their prompts."""

    images: Tensor
    prompts: list[str]

    def batches(self, size: int, seed: int) -> Batches:
        """Endless random batches of row numbers."""
        return Batches(len(self.prompts), size, seed)


class Batches:
    """Row numbers, each row once an epoch, shuffled by a generator of their own."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.count, self.size = count, min(size, count)
        self.generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Tensor:
        if len(self._order) < self.size:
            self._order = torch.randperm(self.count, generator=self.generator)
        rows, self._order = self._order[: self.size], self._order[self.size :]
        return rows


def draw_scenes(count: int, seed: int) -> Scenes:
    """Random scenes of the training split."""
    generator = random.Random(f"scenes-{seed}")
    facts = [draw_facts(generator, "train") for _ in range(count)]
    images = np.stack([render(one, generator) for one in facts])
    return Scenes(torch.from_numpy(images) * 2 - 1, [str(one) for one in facts])

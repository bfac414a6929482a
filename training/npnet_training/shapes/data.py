"""Training scenes of the shapes world, rendered once."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from npnet_training.shapes.grammar import draw_facts
from npnet_training.shapes.render import render_with_shapes

LAYOUT_SIDE = 8


@dataclass(frozen=True)
class Scenes:
    """Scenes of the training split.

    Args:
        images: (N, 3, H, W) float32 in [-1, 1].
        layouts: (N, 7, 8, 8) float32: what is where, in colour (3) and in kind of shape (4), of about unit
            variance. The background's brightness, which no prompt tells, is not in it.
        prompts: N of them.
    """

    images: Tensor
    layouts: Tensor
    prompts: list[str]

    def to(self, device: str) -> Scenes:
        """The same scenes on a device; what is trained on them is trained there."""
        return Scenes(self.images.to(device), self.layouts.to(device), self.prompts)


def rows_of(step: int, count: int, size: int, seed: int) -> Tensor:
    """Row numbers of a step's batch of `size` out of `count`: each row once an epoch, shuffled anew."""
    size = min(size, count)
    epoch, place = divmod(step, count // size)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)[place * size : (place + 1) * size]


def draw_scenes(count: int, seed: int) -> Scenes:
    """Random scenes of the training split."""
    generator = random.Random(f"scenes-{seed}")
    facts = [draw_facts(generator, "train") for _ in range(count)]
    drawn = [render_with_shapes(one, generator) for one in facts]
    images = torch.from_numpy(np.stack([image for image, _ in drawn])) * 2 - 1
    kinds = torch.from_numpy(np.stack([kind for _, kind in drawn]))
    return Scenes(images, layouts_of(images, kinds), [str(one) for one in facts])


def layouts_of(images: Tensor, kinds: Tensor, cell: int | None = None) -> Tensor:
    """What is where, of images (N, 3, H, W) and the kinds of shape in them, (N, 4, H, W).

    Args:
        images: in [-1, 1].
        kinds: how much of a pixel each kind covers.
        cell: sides of a cell in pixels; None for 8 cells a side.

    Returns:
        (N, 7, H / cell, W / cell).
    """
    side = cell or images.shape[-1] // LAYOUT_SIDE
    hues = F.avg_pool2d(images - images.mean(1, keepdim=True), side)
    return torch.cat([4 * hues, 4 * F.avg_pool2d(kinds, side)], dim=1)

"""Training scenes of the second world, rendered once."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from npnet_training.scenes.grammar import Scene, ScenesError, draw_scene
from npnet_training.scenes.placing import Size, place
from npnet_training.scenes.render import draw
from npnet_training.shapes.data import Scenes, layouts_of
from npnet_training.shapes.grammar import ALL_THINGS
from npnet_training.shapes.render import Placed

CELL = 8  # pixels a side, of layouts


def draw_placed(count: int, seed: int, size: Size) -> list[tuple[Scene, list[Placed], random.Random]]:
    """Random scenes of the training split in their places, and what goes on to draw each."""
    generator = random.Random(f"second-{seed}-{size}")
    found: list[tuple[Scene, list[Placed], random.Random]] = []
    while len(found) < count:
        scene = draw_scene(generator, "train")
        try:
            placed = place(scene, generator, size, seen=False)
        except ScenesError:
            continue  # one in two hundred cannot be shown without showing what is held out
        found.append((scene, placed, random.Random(generator.getrandbits(63))))
    return found


def draw_scenes(count: int, seed: int, size: Size = (64, 64)) -> tuple[Scenes, Tensor]:
    """Random scenes of the training split, and how often each thing is in them, (N, 24) float32.

    Layouts are (N, 7, H / 8, W / 8).
    """
    placed = draw_placed(count, seed, size)
    drawn = [draw(items, generator, size) for _, items, generator in placed]
    images = torch.from_numpy(np.stack([image for image, _ in drawn])) * 2 - 1
    kinds = torch.from_numpy(np.stack([kind for _, kind in drawn]))
    layouts = layouts_of(images, kinds, CELL)
    counts = torch.tensor(
        [[sum(i.thing == thing for i in items) for thing in ALL_THINGS] for _, items, _ in placed]
    )
    return Scenes(images, layouts, [str(scene) for scene, _, _ in placed]), counts.float()

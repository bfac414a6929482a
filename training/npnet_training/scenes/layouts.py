"""One of a few plain layouts for each scene, which its noise chooses, and noise that has it written in.

A model whose layouts are wrong more often than its shapes is helped by a hint of a right one: noise with an
eighth to a quarter of its energy from the latents of an image in which the prompt holds. Which image must be
a function of noise and prompt that a small network can learn. Of random places, the mean of all that were
possible is learned, which is a hint of none; so things go to the cells of a coarse lattice, in an order that
depends on nothing but signs of the noise.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from npnet_training.scenes.grammar import Scene, ScenesError
from npnet_training.scenes.placing import Size, first_that_holds, radius_of
from npnet_training.shapes.render import Placed, paint
from npnet_training.shapes.train_autoencoder import encode

GROUNDS = (0.2, 0.8)  # a dark one and a light one, in the middle of what `background` draws
VARIANTS = 4
_RIM = 12.0  # pixels from the edge to the outer cells
_NARROW = 64  # pixels; a shorter side has two cells, not three


def lay_out(scene: Scene, size: Size, variant: int = 0, *, seen: bool = False) -> list[Placed]:
    """Where a scene's things are in one of its layouts.

    Args:
        scene: to lay out.
        size: of the canvas.
        variant: 0 to `VARIANTS` - 1.
        seen: whether combinations that are held out may be seen, as they must not in the training split.

    Raises:
        ScenesError: it fits nowhere.
    """
    cells = _cells(size, variant)
    radii = np.array([sum(radius_of(scene, group)) / 2 for group in scene.things])
    centres = cells[_choices(len(cells), len(radii))]
    if found := first_that_holds(scene, radii, centres, seen=seen):
        return found
    raise ScenesError(f"expected a scene with a plain layout in {size[0]}x{size[1]} pixels, given '{scene}'")


class LayoutWriter:
    """Writes a right layout into noise, its norm kept: x + strength z, z the latents of an image.

    Args:
        vae: the model's autoencoder.
        size: of the images.
        strength: of the latents.
        variants: layouts of each scene, of which its noise chooses one, as it chooses the ground.
    """

    def __init__(self, vae: Any, size: Size, strength: float, variants: int = 1) -> None:
        self.vae, self.size, self.strength, self.variants = vae, size, strength, variants
        self._grounds = torch.stack([torch.full((3, *size), level) for level in GROUNDS])
        self._light = self._latents(self._grounds).diff(dim=0)
        # Of channels, whose means over all places a network finds sooner than weights for each place.
        self._mixtures = torch.randn(16, 2, generator=torch.Generator().manual_seed(5))

    def write(self, noise: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """Golden noise (B, C, H, W) of noise and B scenes.

        NaN where a scene has no layout that shows nothing held out.
        """
        plain = noise.float().cpu()
        light = (plain * self._light).sum((1, 2, 3)) > 0
        bits = (plain.mean((2, 3)) @ self._mixtures > 0).long()
        variants = ((bits[:, 0] + 2 * bits[:, 1]) % self.variants).tolist()
        images, missing = [], []
        for scene, ground, variant in zip(scenes, self._grounds[light.long()], variants, strict=True):
            try:
                placed = lay_out(scene, self.size, variant)
            except ScenesError:
                placed = []
            missing.append(not placed)
            images.append(torch.from_numpy(paint(ground.numpy().copy(), placed, random.Random(0))[0]))
        golden = plain + self.strength * self._latents(torch.stack(images))
        golden = golden * (plain.flatten(1).norm(dim=1) / golden.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
        golden[torch.tensor(missing)] = math.nan
        return golden.to(noise)

    def _latents(self, images: Tensor) -> Tensor:
        found = encode(self.vae, images.to(self.vae.device) * 2 - 1).float().cpu()
        return found * float(self.vae.config.scaling_factor)


@cache
def _cells(size: Size, variant: int) -> NDArray[np.float64]:
    """Centres (x, y) of the lattice's cells as they are taken, far from one another first; (cells, 2).

    Mirrored up and down, and left and right, by the variant.
    """
    rows, columns = (3 if side >= _NARROW else 2 for side in size)
    down, across = (np.linspace(_RIM, side - _RIM, n) for side, n in zip(size, (rows, columns), strict=True))
    down, across = (down[::-1] if variant & 1 else down), (across[::-1] if variant & 2 else across)
    corners = [(0, 0), (rows - 1, columns - 1), (0, columns - 1), (rows - 1, 0)]
    others = {*itertools.product(range(rows), range(columns))}.difference(corners)
    middle = ((rows - 1) / 2, (columns - 1) / 2)
    inner_first = sorted(sorted(others), key=lambda cell: abs(cell[0] - middle[0]) + abs(cell[1] - middle[1]))
    return np.array([(across[column], down[row]) for row, column in corners + inner_first])


@cache
def _choices(cells: int, things: int) -> NDArray[np.int64]:
    """All ways to give things a cell each, the first cells first."""
    return np.array([*itertools.permutations(range(cells), things)])

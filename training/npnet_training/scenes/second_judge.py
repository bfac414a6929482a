"""A judge that no reward and no selection ever sees: a small network trained on renders finds the things.

It shares no code with `verify`, and errs otherwise: a gain that only one of them sees is none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from npnet_training.errors import ScorerError
from npnet_training.scenes.grammar import Scene
from npnet_training.shapes.grammar import COLOURS, SHAPES

FILE = "second-judge.safetensors"
CELL = 8  # pixels a side, of which each belongs to at most one thing: no two centres are as close
MALFORMED = len(SHAPES)
# Chance of a thing in a cell to look at it, and of it in all cells: on a corner the chances of four do not
# add up to one.
LEAST, SURE = 0.02, 0.25
WIDTHS = (24, 48, 64)
_OUT = 1 + 3 + len(COLOURS) + len(SHAPES) + 1
SMALLER_THAN = 6.3  # pixels of radius: small, and large from there on


@dataclass(frozen=True)
class Found:
    """A thing that was found: its shape is None if it is of none."""

    colour: str
    shape: str | None
    x: float
    y: float
    radius: float


class Eyes(nn.Module):
    """For each cell of 8x8 pixels: whether a thing's centre is there, where, its size, colour and shape."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in WIDTHS:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 4, stride=2, padding=1), nn.SiLU()]
            before = width
        layers += [nn.Conv2d(before, before, 3, padding=1), nn.GroupNorm(8, before), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, _OUT, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, 1 + 3 + colours + shapes + 1, H / 8, W / 8)."""
        found: Tensor = self.layers(2 * images - 1)
        return found


class SecondJudge:
    """Says of images which things they show, and whether all of a scene is true.

    Args:
        eyes: trained.
    """

    def __init__(self, eyes: Eyes) -> None:
        self.eyes = eyes.eval()

    @classmethod
    def load(cls, path: Path) -> SecondJudge:
        """The judge whose weights `train_second_judge` wrote.

        Raises:
            ScorerError: there are none, or damaged ones.
        """
        eyes = Eyes()
        try:
            eyes.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        except (OSError, ValueError, RuntimeError) as error:
            raise ScorerError(
                f"{path}: expected the second judge's weights ({error}); make them with "
                "python -m npnet_training.scenes.train_second_judge --output FILE"
            ) from error
        return cls(eyes)

    @torch.no_grad()
    def see(self, images: Tensor) -> list[list[Found]]:
        """The things in images (B, 3, H, W) in [0, 1], of sides that are multiples of 8."""
        read = self.eyes(images.float()).movedim(1, -1).cpu()
        there, place, colours, shapes = read.split([1, 3, len(COLOURS), len(SHAPES) + 1], dim=-1)
        centre, radius = place[..., :2].sigmoid() * CELL, F.softplus(place[..., 2]) * CELL
        chance = there[..., 0].sigmoid()
        seen: list[list[tuple[float, Found]]] = [[] for _ in images]
        likely = chance > LEAST
        surest_first = chance[likely].argsort(descending=True, stable=True)
        for image, row, column in likely.nonzero()[surest_first].tolist():
            cell = (image, row, column)
            shape = int(shapes[cell].argmax())
            found = Found(
                COLOURS[int(colours[cell].argmax())],
                None if shape == MALFORMED else SHAPES[shape],
                column * CELL + float(centre[cell][0]),
                row * CELL + float(centre[cell][1]),
                float(radius[cell]),
            )
            _add(seen[image], float(chance[cell]), found)
        return [[found for sure, found in things if sure > SURE] for things in seen]

    def strict(self, images: Tensor, scenes: Sequence[Scene]) -> list[bool]:
        """Whether all is true of each image."""
        return [holds(found, scene) for found, scene in zip(self.see(images), scenes, strict=True)]


def _add(things: list[tuple[float, Found]], chance: float, found: Found) -> None:
    """Another thing, or the same one seen from the next cell, as where its centre is on their border."""
    for number, (sure, other) in enumerate(things):
        if math.hypot(other.x - found.x, other.y - found.y) < CELL:
            things[number] = (sure + chance, other)
            return
    things.append((chance, found))


def holds(found: Sequence[Found], scene: Scene) -> bool:
    """Whether all of a scene is true of the things that were found."""
    wanted: Counter[Any] = Counter()
    for group in scene.groups:
        wanted[group.thing.colour, group.thing.shape] += group.count
    if Counter((item.colour, item.shape) for item in found) != wanted:
        return False
    by_kind = {kind: [item for item in found if (item.colour, item.shape) == kind] for kind in wanted}
    for group in scene.groups:
        for item in by_kind[group.thing.colour, group.thing.shape]:
            if group.size and (group.size == "small") != (item.radius < SMALLER_THAN):
                return False
    for number, link in enumerate(scene.links):
        if link == "and":
            continue
        first, second = scene.groups[number].thing, scene.groups[number + 1].thing
        for a in by_kind[first.colour, first.shape]:
            for b in by_kind[second.colour, second.shape]:
                if not _so(link, b.x - a.x, b.y - a.y):
                    return False
    return True


def _so(link: str, right: float, down: float) -> bool:
    """Whether something is so far to the right and down of what is `link` it."""
    return {
        "left of": right > abs(down),
        "right of": -right > abs(down),
        "above": down > abs(right),
        "below": -down > abs(right),
    }[link]

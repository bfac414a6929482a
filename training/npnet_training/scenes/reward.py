"""A differentiable stand-in for the judge of the second world: `verify`'s facts, each held to a degree.

Colours are told apart as in the first world. A thing is sought by its shape in the mask of its colour, at
every place and several sizes, by intersection over union; where several are alike, at as many places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from npnet_training.errors import RewardError
from npnet_training.scenes.grammar import Group, Scene
from npnet_training.scenes.placing import BETWEEN_SIZES, KNOWN_SIZES, SIZES, radius_of
from npnet_training.shapes.grammar import COLOURS, SHAPES
from npnet_training.shapes.reward import ShapesReward, Templates

SOUGHT = (4.4, 4.9, 5.5, 6.2, 6.9, 7.8)  # radii in pixels, from the smallest drawn to near the largest
_SIDE = 27  # of a template: the largest shape and a rim
_NEAR = 4  # pixels from a peak that count for its centre
_APART = 9  # pixels: two things of a kind are at least as far from one another
_SHARPNESS = 40.0  # of soft maxima over overlaps
_MARGIN_WIDTH = 4.0  # pixels over which a relation goes from broken to held
_RADIUS_WIDTH = 0.5  # pixels over which a size does
_ROOM = 1.25  # colour may cover so much more than the largest things it is asked for


class Things(NamedTuple):
    """The most likely things of a group: how well each is found, its centre and radius in pixels; (N,) each.

    `surplus` is how well one more than the group has is found, ().
    """

    found: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    surplus: Tensor


class ScenesReward:
    """Mean degree, 0 to 1, to which a scene holds: nothing extra, colours, things, sizes, relations."""

    def __init__(self, *, device: str | torch.device = "cpu", offline: bool = False) -> None:
        self._colours = ShapesReward(device=device)
        self._templates = Templates(SOUGHT, _SIDE, device)
        self._radii = torch.tensor(SOUGHT, device=device)

    def reward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See `npnet_training.rewards.Reward`; images are (B, 3, H, W) of one of `SIZES`.

        Raises:
            ScenesError: a prompt is outside the grammar.
            RewardError: images of another size.
        """
        if tuple(images.shape[2:]) not in SIZES:
            given = f"{images.shape[2]}x{images.shape[3]}"
            raise RewardError(f"scenes: expected images of {KNOWN_SIZES} pixels, given {given}")
        masks = self._colours.colour_masks(images.float())
        scenes = [Scene.parse(prompt) for prompt in prompts]
        rows = [row for row, scene in enumerate(scenes) for _ in scene.groups]
        groups = [group for scene in scenes for group in scene.groups]
        seen = iter(self.seek(masks[rows], groups))
        return torch.stack(
            [
                self._held(mask, scene, {group: next(seen) for group in scene.groups})
                for mask, scene in zip(masks, scenes, strict=True)
            ]
        )

    def _held(self, mask: Tensor, scene: Scene, things: dict[Group, Things]) -> Tensor:
        area = mask.sum((1, 2))
        least, most = area.new_zeros(len(COLOURS)), area.new_zeros(len(COLOURS))
        for group in scene.groups:
            smallest, largest = radius_of(scene, group)
            place = COLOURS.index(group.thing.colour)
            least[place] += group.count * math.pi * smallest**2
            most[place] += group.count * math.pi * largest**2
        one = least.sum() / scene.total
        held = [1 / (1 + (area - _ROOM * most).clamp(min=0).sum() / one)]
        held += [(area[i] / least[i]).clamp(max=1) for i in least.nonzero().flatten().tolist()]
        for group, seen in things.items():
            held += list(seen.found)
            # one too many takes as much as one too few
            held.append(1 - seen.surplus)
            if group.size:
                margin = BETWEEN_SIZES - seen.radius if group.size == "small" else seen.radius - BETWEEN_SIZES
                held.append((torch.sigmoid(margin / _RADIUS_WIDTH) * seen.found).mean())
        for first, relation, second in scene.relations:
            held.append(_related(things[first], relation, things[second]))
        return torch.stack(held).mean()

    def seek(self, masks: Tensor, groups: Sequence[Group]) -> list[Things]:
        """The things of N groups, each in the masks of all colours of its image, (N, colours, H, W)."""
        colours = torch.tensor([COLOURS.index(group.thing.colour) for group in groups])
        kinds = torch.tensor([SHAPES.index(group.thing.shape) for group in groups])
        masks = masks[torch.arange(len(groups)), colours]
        with torch.no_grad():
            there, _ = self._there(self._templates.overlaps(masks), kinds)
            most = max(group.count for group in groups) + 1
            rows, columns = self._peaks(there, most)
        # Only what is about the peaks needs a gradient, a few hundredths of all places.
        height, width = masks.shape[1:]
        near = self._templates.overlaps_about(masks, rows, columns, _NEAR).flatten(0, 1)
        there, sizes = self._there(near, kinds.repeat_interleave(most))
        offsets = torch.arange(-_NEAR, _NEAR + 1, device=masks.device)
        down, across = (place.flatten()[:, None] + offsets for place in (rows, columns))
        outside = ((down < 0) | (down >= height))[:, :, None] | ((across < 0) | (across >= width))[:, None]
        logits = (_SHARPNESS * there).masked_fill(outside, -math.inf)
        # Centres are soft, so that they have a gradient.
        weights = logits.flatten(1).softmax(1).view_as(there)
        x, y = (weights.sum(1) * (across + 0.5)).sum(1), (weights.sum(2) * (down + 0.5)).sum(1)
        radius = (sizes[:, :, _NEAR, _NEAR] * self._radii).sum(1)
        values = torch.stack((there[:, _NEAR, _NEAR], x, y, radius), 1).unflatten(0, (-1, most))
        return [
            Things._make((*peaks[: group.count].unbind(1), peaks[group.count, 0]))
            for group, peaks in zip(groups, values, strict=True)
        ]

    def _there(self, overlap: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """How much things of N kinds are at places, (N, h, w); how likely each radius, (N, radii, h, w)."""
        sizes = (_SHARPNESS * overlap).softmax(2)
        best = (overlap * sizes).sum(2)
        # At each place the shapes compete: a circle overlaps with a square well, but less than a square.
        rows = torch.arange(len(kinds))
        there = (best * (_SHARPNESS * best).softmax(1))[rows, kinds]
        return there, sizes[rows, kinds]

    def _peaks(self, there: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Rows and columns, (N, count), of the highest places (N, H, W) that no higher one is near."""
        highest = F.max_pool2d(there[:, None], 2 * _APART - 1, 1, _APART - 1)[:, 0]
        alone = torch.where(there == highest, there, there.new_full((), -1.0)).flatten(1)
        places = alone.topk(count).indices
        return places // there.shape[2], places % there.shape[2]


def _related(first: Things, relation: str, second: Things) -> Tensor:
    """To what degree all of one group are so related to all of another."""
    dx, dy = second.x[None] - first.x[:, None], second.y[None] - first.y[:, None]
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    along = along if relation in ("left of", "above") else -along
    held = torch.sigmoid((along - across.abs()) / _MARGIN_WIDTH)
    return (held * first.found[:, None] * second.found[None]).mean()

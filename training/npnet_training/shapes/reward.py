"""A differentiable stand-in for the judge of the shapes world: `verify`'s facts, each held to a degree.

A pixel is of a colour to the degree that it is colourful and of its hue. A thing is sought by its shape in
the mask of its colour, at every place and several sizes, by intersection over union; a soft maximum says
how well it is found and where.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from npnet_training.errors import RewardError
from npnet_training.shapes.grammar import COLOURS, SHAPES, Facts
from npnet_training.shapes.render import PALETTE, SIZE, coverage

RADII = (3.2, 3.7, 4.3, 4.9, 5.5, 6.2)  # in pixels, from below the smallest drawn to the largest
_SIDE = 19  # of a template: the largest shape and a rim
_CHROMA, _CHROMA_WIDTH = 0.25, 0.03  # `verify` takes a pixel for coloured from the first on
_HUE_WIDTH = 0.05  # in cosine; the closest two hues of the palette are 0.2 apart
_SHARPNESS = 40.0  # of soft maxima over overlaps
_MARGIN_WIDTH = 3.0  # pixels over which a relation goes from broken to held
_ROOM = 1.3  # colour may cover so much more than the things it is asked for


class Templates:
    """All shapes in several sizes, to be laid over masks.

    Args:
        radii: in pixels.
        side: of a template, the largest shape and a rim.
        device: of the masks.
    """

    def __init__(self, radii: Sequence[float], side: int, device: str | torch.device) -> None:
        drawn = [
            torch.from_numpy(coverage(shape, side / 2, side / 2, radius, side))
            for shape in SHAPES
            for radius in radii
        ]
        self._templates = torch.stack(drawn)[:, None].to(device)  # (shapes * radii, 1, side, side)
        # A thing with its rim of two pixels, in which a larger shape would show.
        self._windows = F.max_pool2d(self._templates, 5, 1, 2)
        self._sizes, self._padding = len(radii), side // 2

    def overlaps(self, masks: Tensor) -> Tensor:
        """Intersection over union at every place of masks (N, H, W): (N, shapes, radii, H, W)."""
        return self._overlaps(masks, self._padding)

    def overlaps_about(self, masks: Tensor, rows: Tensor, columns: Tensor, reach: int) -> Tensor:
        """The same about K places of each mask only, at rows and columns (N, K).

        Returns:
            (N, K, shapes, radii, 2 reach + 1, 2 reach + 1).
        """
        rim = self._padding + reach
        padded = F.pad(masks, [rim] * 4)
        span = torch.arange(2 * rim + 1, device=masks.device)
        down, across = (place[:, :, None] + span for place in (rows, columns))
        of = torch.arange(len(masks), device=masks.device).view(-1, 1, 1, 1)
        windows = padded[of, down[:, :, :, None], across[:, :, None]]
        return self._overlaps(windows.flatten(0, 1), 0).unflatten(0, rows.shape)

    def _overlaps(self, masks: Tensor, padding: int) -> Tensor:
        common = F.conv2d(masks[:, None], self._templates, padding=padding)
        inside = F.conv2d(masks[:, None], self._windows, padding=padding)
        area = self._templates.sum((1, 2, 3)).view(-1, 1, 1)
        return (common / (area + inside - common)).unflatten(1, (len(SHAPES), self._sizes))


class ShapesReward:
    """Mean degree, 0 to 1, to which a prompt's facts hold: nothing extra, colours, things, relations."""

    def __init__(self, *, device: str | torch.device = "cpu", offline: bool = False) -> None:
        colours = torch.tensor([PALETTE[name] for name in COLOURS], device=device)
        hues = colours - colours.mean(1, keepdim=True)
        self._hues = F.normalize(hues, dim=1)
        self._full_chroma = (colours.amax(1) - colours.amin(1)).view(-1, 1, 1)
        self._templates = Templates(RADII, _SIDE, device)
        self._places = torch.arange(SIZE, device=device) + 0.5

    def reward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See `npnet_training.rewards.Reward`; images are (B, 3, 32, 32).

        Raises:
            ShapesError: a prompt is outside the grammar.
            RewardError: images of another size.
        """
        if images.shape[1:] != (3, SIZE, SIZE):
            raise RewardError(
                f"shapes: expected images of shape (3, {SIZE}, {SIZE}), given {tuple(images.shape[1:])}"
            )
        masks = self.colour_masks(images.float())
        facts = [Facts.parse(prompt) for prompt in prompts]
        return torch.stack([self._held(mask, one) for mask, one in zip(masks, facts, strict=True)])

    def colour_masks(self, images: Tensor) -> Tensor:
        """(B, colours, H, W) in [0, 1]: how much of each pixel is of each colour."""
        chroma = (images.amax(1) - images.amin(1))[:, None]
        hue = images - images.mean(1, keepdim=True)
        hue = hue / (hue.square().sum(1, keepdim=True) + 1e-6).sqrt()
        likeness = torch.einsum("kc,bchw->bkhw", self._hues, hue)
        alike = (likeness / _HUE_WIDTH).softmax(1)
        coloured = torch.sigmoid((chroma - _CHROMA) / _CHROMA_WIDTH)
        return alike * coloured * (chroma / self._full_chroma).clamp(max=1)

    def _held(self, mask: Tensor, facts: Facts) -> Tensor:
        things = facts.things
        found, x, y = self._seek(
            mask[[COLOURS.index(thing.colour) for thing in things]],
            [SHAPES.index(thing.shape) for thing in things],
        )
        colours = [thing.colour for thing in things]
        area = mask.sum((1, 2))
        least = math.pi * _least_radius(len(things)) ** 2
        wanted = area.new_tensor([least * colours.count(colour) for colour in COLOURS])
        extra = (area - _ROOM**2 * wanted).clamp(min=0).sum() / least
        held = [1 / (1 + extra)]
        held += [(area[i] / wanted[i]).clamp(max=1) for i in map(COLOURS.index, colours)]
        held += list(found)
        for index, relation in enumerate(facts.relations):
            dx, dy = x[index + 1] - x[index], y[index + 1] - y[index]
            along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
            along = along if relation in ("left of", "above") else -along
            margin = along - across.abs()
            held.append(torch.sigmoid(margin / _MARGIN_WIDTH) * found[index] * found[index + 1])
        return torch.stack(held).mean()

    def _seek(self, masks: Tensor, shapes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """How well shapes are found in (N, H, W) masks, and their centres in pixels; (N,) each."""
        overlap = self._templates.overlaps(masks)
        overlap = (overlap * (_SHARPNESS * overlap).softmax(2)).sum(2)
        # At each place the shapes compete: a circle overlaps with a square well, but less than a square.
        likelihood = (_SHARPNESS * overlap).softmax(1)
        rows = torch.arange(len(masks), device=masks.device)
        kinds = torch.tensor(shapes, device=masks.device)
        there = (overlap * likelihood)[rows, kinds]  # (N, H, W)
        where = (_SHARPNESS * there).flatten(1).softmax(1).view_as(there)
        found = (where * there).sum((1, 2))
        return found, (where.sum(1) * self._places).sum(1), (where.sum(2) * self._places).sum(1)


def _least_radius(count: int) -> float:
    """Of the smallest of so many things, in pixels; see `render`."""
    return {1: 5.5, 2: 4.8, 3: 3.5}[count]

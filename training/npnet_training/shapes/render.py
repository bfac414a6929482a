"""Draw scenes: 32x32 images of facts, anti-aliased, jittered, on varied backgrounds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from npnet_training.shapes.grammar import SHAPES, Facts, ShapesError, Thing

SIZE = 32
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.15, 0.15),
    "green": (0.15, 0.68, 0.22),
    "blue": (0.18, 0.30, 0.90),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.62, 0.20, 0.78),
    "cyan": (0.15, 0.80, 0.85),
}
_RADII = {1: (5.5, 6.5), 2: (4.8, 5.6), 3: (3.5, 3.9)}  # in pixels, by number of things
_LONGEST = 1.18  # half the side of the longest shape, the cross, in radii
_REACH = 1.28  # from the centre to the image's edge at least, in radii
_GAP = 2.0  # pixels between two things at least
# How much in pixels a scene varies: the more, the longer a denoiser trains before its shapes are sharp.
_FURTHER, _ASIDE, _OFF_CENTRE = 2.0, 1.5, 2.0
_TRIES = 10_000  # of 30,000 scenes each was placed within 320
Image = NDArray[np.float32]


@dataclass(frozen=True)
class Placed:
    """A thing at its centre (x right, y down) and of its radius, in pixels."""

    thing: Thing
    x: float
    y: float
    radius: float


def coverage(shape: str, x: float, y: float, radius: float, size: int | tuple[int, int] = SIZE) -> Image:
    """How much of each pixel a shape covers, (height, width) in [0, 1]; one number is the side of a square.

    All shapes are centred on their centre of mass, and have about the area of a circle of that radius.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    dx, dy = columns - x, rows - y
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(abs(dx), abs(dy)) - 0.89 * radius
    elif shape == "triangle":
        # point upwards; the inner radius of an equilateral triangle is half its outer radius
        inner = 0.78 * radius
        distance = np.maximum(dy, 0.866 * abs(dx) - 0.5 * dy) - inner
    elif shape == "cross":
        arm, length = 0.40 * radius, 1.18 * radius
        bar = np.maximum(abs(dx) - length, abs(dy) - arm)
        distance = np.minimum(bar, np.maximum(abs(dy) - length, abs(dx) - arm))
    else:
        raise ValueError(f"expected one of {', '.join(SHAPES)}, given {shape!r}")
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def place(facts: Facts, generator: random.Random) -> list[Placed]:
    """Random places at which the facts hold: one beside the other, all of them about the middle.

    Raises:
        ShapesError: there are none.
    """
    for _ in range(_TRIES):
        placed = [Placed(facts.things[0], 0.0, 0.0, _radius(len(facts.things), generator))]
        for _, relation, thing in facts.links:
            placed.append(_beside(placed[-1], relation, thing, len(facts.things), generator))
        placed = _centred(placed, generator)
        if all(_inside(item) for item in placed) and _apart(placed):
            return placed
    raise ShapesError(f"expected facts that fit into {SIZE} pixels and agree; no places found for '{facts}'")


def _radius(count: int, generator: random.Random) -> float:
    return generator.uniform(*_RADII[count])


def _beside(other: Placed, relation: str, thing: Thing, count: int, generator: random.Random) -> Placed:
    radius = _radius(count, generator)
    along = _LONGEST * (radius + other.radius) + _GAP + generator.uniform(0, _FURTHER)
    across = generator.uniform(-_ASIDE, _ASIDE)
    if relation in ("right of", "below"):
        along = -along
    dx, dy = (along, across) if relation in ("left of", "right of") else (across, along)
    return Placed(thing, other.x + dx, other.y + dy, radius)


def _centred(placed: list[Placed], generator: random.Random) -> list[Placed]:
    """The same, moved: the middle of its extent within `_OFF_CENTRE` of the image's."""
    by = []
    for axis in ([item.x for item in placed], [item.y for item in placed]):
        by.append(SIZE / 2 - (min(axis) + max(axis)) / 2 + generator.uniform(-_OFF_CENTRE, _OFF_CENTRE))
    return [replace(item, x=item.x + by[0], y=item.y + by[1]) for item in placed]


def _inside(item: Placed) -> bool:
    reach = _REACH * item.radius
    return reach <= item.x <= SIZE - reach and reach <= item.y <= SIZE - reach


def _apart(placed: list[Placed]) -> bool:
    return all(
        max(abs(a.x - b.x), abs(a.y - b.y)) >= _LONGEST * (a.radius + b.radius) + _GAP
        for i, a in enumerate(placed)
        for b in placed[:i]
    )


def render(facts: Facts, generator: random.Random) -> Image:
    """A random image in which the facts hold, (3, 32, 32) float32 in [0, 1]."""
    return render_with_shapes(facts, generator)[0]


def render_with_shapes(facts: Facts, generator: random.Random) -> tuple[Image, Image]:
    """A random image, and how much of each pixel each kind of shape covers, (4, 32, 32) in [0, 1]."""
    image = background(generator)
    return paint(image, place(facts, generator), generator)


def paint(image: Image, placed: Sequence[Placed], generator: random.Random) -> tuple[Image, Image]:
    """Things on a background (3, H, W), and how much of each pixel each kind of shape covers, (4, H, W)."""
    size = image.shape[1], image.shape[2]
    covered = np.zeros((len(SHAPES), *size), dtype=np.float32)
    for item in placed:
        colour = np.array(PALETTE[item.thing.colour], dtype=np.float32)
        colour = np.clip(colour + [generator.uniform(-0.04, 0.04) for _ in range(3)], 0, 1)
        alpha = coverage(item.thing.shape, item.x, item.y, item.radius, size)
        image += alpha * (colour[:, None, None] - image)
        covered[SHAPES.index(item.thing.shape)] += alpha
    return image.astype(np.float32), covered


def background(generator: random.Random, size: tuple[int, int] = (SIZE, SIZE)) -> Image:
    """A nearly neutral grey, lighter towards a random side, (3, height, width) in [0, 1]."""
    level, tint = generator.choice([(0.05, 0.35), (0.65, 0.95)]), 0.03
    base = generator.uniform(*level)
    slope = [generator.uniform(-0.08, 0.08) for _ in range(2)]
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32) / max(size) - 0.5
    grey = base + slope[0] * rows + slope[1] * columns
    tints = np.array([generator.uniform(-tint, tint) for _ in range(3)], dtype=np.float32)
    return np.clip(grey[None] + tints[:, None, None], 0, 1).astype(np.float32)

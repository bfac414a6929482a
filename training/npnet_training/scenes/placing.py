"""Where things of a scene may be: random places at which it holds, and at which nothing held out is seen."""

from __future__ import annotations

import itertools
import random

import numpy as np
from numpy.typing import NDArray

from npnet_training.scenes.grammar import Group, Scene, ScenesError, is_held_out
from npnet_training.shapes.grammar import RELATIONS
from npnet_training.shapes.render import Placed

Size = tuple[int, int]
"""Height and width in pixels."""
SIZES: tuple[Size, ...] = ((64, 64), (64, 48), (48, 64))
KNOWN_SIZES = ", ".join(f"{height}x{width}" for height, width in SIZES)
RADII = {"small": (4.4, 5.2), "large": (7.4, 8.2), "": (5.8, 6.8), "many": (4.5, 5.6)}
"""In pixels, by size; `many` where there are three things or more."""
BETWEEN_SIZES = 6.3
"""Radius that tells small from large."""
# Half the width, and the reach upwards and downwards, of a shape of radius 1; see `shapes.render.coverage`.
_REACH = {
    "circle": (1.0, 1.0, 1.0), "square": (0.89, 0.89, 0.89), "triangle": (1.351, 1.56, 0.78),
    "cross": (1.18, 1.18, 1.18),
}  # fmt: skip
_GAP, _RIM = 3.0, 1.5  # pixels between two things, and to the edge
_CLEARLY = 2.0  # pixels by which a relation that is asked for holds in a render
_AT_ONCE, _ROUNDS = 512, 60


def relation_of(dx: float, dy: float) -> str | None:
    """How one thing is to another that is (dx, dy) pixels away; None on the diagonal."""
    if abs(dx) == abs(dy):
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def place(scene: Scene, generator: random.Random, size: Size, *, seen: bool = True) -> list[Placed]:
    """Random places in a canvas at which a scene holds.

    Args:
        scene: to place.
        generator: of places and radii.
        size: of the canvas.
        seen: whether combinations that are held out may be seen, as they must not in the training split.

    Raises:
        ScenesError: no places were found.
    """
    things = scene.things
    draws = np.random.default_rng(generator.getrandbits(63))
    for _ in range(_ROUNDS):
        radii = np.array([generator.uniform(*radius_of(scene, group)) for group in things])
        centres = _candidates(things, radii, size, draws)
        if found := first_that_holds(scene, radii, centres, seen=seen):
            return found
    raise ScenesError(
        f"expected a scene that fits into {size[0]}x{size[1]} pixels, no places found for '{scene}'"
    )


def radius_of(scene: Scene, group: Group) -> tuple[float, float]:
    """Least and most of a group's things in a scene, in pixels."""
    return RADII["many" if scene.total > 2 else group.size]


def first_that_holds(
    scene: Scene, radii: NDArray[np.float64], centres: NDArray[np.float64], *, seen: bool
) -> list[Placed]:
    """A scene's N things, of radii (N,), at the first of centres (K, N, 2) where it holds; [] if at none.

    Args:
        scene: to place.
        radii: in pixels.
        centres: (x, y) in pixels.
        seen: whether combinations that are held out may be seen.
    """
    things = scene.things
    for number in np.flatnonzero(_apart(things, radii, centres) & _related(scene, centres)):
        found = [
            Placed(group.thing, float(x), float(y), float(radius))
            for group, (x, y), radius in zip(things, centres[number], radii, strict=True)
        ]
        if seen or not shows_held_out(found):
            return found
    return []


def _candidates(
    things: tuple[Group, ...], radii: NDArray[np.float64], size: Size, draws: np.random.Generator
) -> NDArray[np.float64]:
    """(K, N, 2) centres, each thing inside of the canvas."""
    reach = np.array([_REACH[group.thing.shape] for group in things]) * radii[:, None]
    low = np.stack([reach[:, 0], reach[:, 1]], axis=1) + _RIM
    high = np.array([size[1], size[0]]) - np.stack([reach[:, 0], reach[:, 2]], axis=1) - _RIM
    return low + (high - low) * draws.random((_AT_ONCE, len(things), 2))


def _apart(
    things: tuple[Group, ...], radii: NDArray[np.float64], centres: NDArray[np.float64]
) -> NDArray[np.bool_]:
    good = np.ones(len(centres), dtype=bool)
    reach = np.array([_REACH[group.thing.shape] for group in things]) * radii[:, None]
    for a, b in itertools.combinations(range(len(things)), 2):
        dx, dy = (centres[:, b] - centres[:, a]).T
        beside = abs(dx) >= reach[a, 0] + reach[b, 0] + _GAP
        below = dy >= reach[a, 2] + reach[b, 1] + _GAP
        above = -dy >= reach[a, 1] + reach[b, 2] + _GAP
        good &= beside | below | above
    return good


def _related(scene: Scene, centres: NDArray[np.float64]) -> NDArray[np.bool_]:
    good = np.ones(len(centres), dtype=bool)
    groups = scene.things
    for first, relation, second in scene.relations:
        for a, b in itertools.product(range(len(groups)), repeat=2):
            if (groups[a], groups[b]) == (first, second):
                dx, dy = (centres[:, b] - centres[:, a]).T
                along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
                along = along if relation in ("left of", "above") else -along
                good &= along > abs(across) + _CLEARLY
    return good


def shows_held_out(placed: list[Placed]) -> bool:
    """Whether a combination that is held out is seen, between any two things."""
    for a, b in itertools.permutations(placed, 2):
        relation = relation_of(b.x - a.x, b.y - a.y)
        if a.thing != b.thing and relation in RELATIONS and is_held_out(a.thing, relation, b.thing):
            return True
    return False

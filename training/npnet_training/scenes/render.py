"""Draw scenes of the second world in any of its sizes, as the first world's are drawn."""

from __future__ import annotations

import random

from npnet_training.scenes.grammar import Scene
from npnet_training.scenes.placing import Size, place
from npnet_training.shapes.render import Image, Placed, background, paint


def render(scene: Scene, generator: random.Random, size: Size = (64, 64), *, seen: bool = True) -> Image:
    """A random image in which a scene holds, (3, height, width) float32 in [0, 1].

    Args:
        scene: to draw.
        generator: of all that it leaves open.
        size: height and width.
        seen: whether combinations that are held out may be seen.

    Raises:
        ScenesError: as `place` does.
    """
    return draw(place(scene, generator, size, seen=seen), generator, size)[0]


def draw(placed: list[Placed], generator: random.Random, size: Size) -> tuple[Image, Image]:
    """Things in their places, and how much of each pixel each kind of shape covers, (4, height, width)."""
    return paint(background(generator, size), placed, generator)

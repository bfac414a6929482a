"""The judge of the second world that rewards and selections may see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from npnet_training.errors import ScorerError
from npnet_training.scenes.grammar import Scene
from npnet_training.scenes.placing import SIZES
from npnet_training.scenes.verify import verify
from npnet_training.scorers.shapes import ShapesScorer, StrictShapesScorer, pixels_of
from npnet_training.shapes.verify import Verdict

if TYPE_CHECKING:
    from PIL import Image


def judge(prompt: str, image: Image.Image) -> Verdict:
    """What of a prompt holds in an image of one of `SIZES`.

    Raises:
        ScenesError: the prompt is outside the grammar.
        ScorerError: the image is not of the second world.
    """
    if image.size[::-1] not in SIZES:
        known = ", ".join(f"{height}x{width}" for height, width in SIZES)
        raise ScorerError(f"scenes: expected images of {known} pixels, given {image.size[1]}x{image.size[0]}")
    return verify(pixels_of(image), Scene.parse(prompt))


class ScenesScorer(ShapesScorer):
    """Share of a prompt's facts that hold, 0 to 1."""

    def _verdict(self, prompt: str, image: Image.Image) -> Verdict:
        return judge(prompt, image)


class StrictScenesScorer(ScenesScorer, StrictShapesScorer):
    """1 where all facts hold, else 0."""

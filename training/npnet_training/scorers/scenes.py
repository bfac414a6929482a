"""The judges of the second world: the one that rewards and selections may see, and the one they may not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from npnet_training.embedded import SCENES
from npnet_training.errors import ScorerError
from npnet_training.scenes.grammar import Scene
from npnet_training.scenes.placing import SIZES
from npnet_training.scenes.second_judge import FILE, SecondJudge
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
    _check(image)
    return verify(pixels_of(image), Scene.parse(prompt))


class ScenesScorer(ShapesScorer):
    """Share of a prompt's facts that hold, 0 to 1."""

    def _verdict(self, prompt: str, image: Image.Image) -> Verdict:
        return judge(prompt, image)


class StrictScenesScorer(ScenesScorer, StrictShapesScorer):
    """1 where all facts hold, else 0."""


class SecondScenesScorer:
    """1 where all of a prompt is true in the eyes of the second judge, else 0; never choose by it."""

    def __init__(self, *, device: str | torch.device = "cpu", offline: bool = False) -> None:
        SCENES.check()
        self._judge = SecondJudge.load(SCENES.folder / FILE)

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        """See `Scorer`.

        Raises:
            ScenesError: a prompt is outside the grammar.
            ScorerError: an image is not of the second world.
        """
        found = []
        for prompt, image in zip(prompts, images, strict=True):
            _check(image)
            pixels = torch.from_numpy(np.ascontiguousarray(pixels_of(image)))
            found += self._judge.strict(pixels[None], [Scene.parse(prompt)])
        return [float(right) for right in found]


def _check(image: Image.Image) -> None:
    if image.size[::-1] not in SIZES:
        known = ", ".join(f"{height}x{width}" for height, width in SIZES)
        raise ScorerError(f"scenes: expected images of {known} pixels, given {image.size[1]}x{image.size[0]}")

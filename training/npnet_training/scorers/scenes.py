"""The judge of the second world that rewards and selections may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from npnet_training.errors import ScorerError
from npnet_training.scenes.grammar import Scene
from npnet_training.scenes.placing import SIZES
from npnet_training.scenes.verify import verify
from npnet_training.shapes.verify import Verdict

if TYPE_CHECKING:
    from PIL import Image


class ScenesScorer:
    """Share of a prompt's facts that hold, 0 to 1."""

    def __init__(self, *, device: str | torch.device = "cpu", offline: bool = False) -> None:
        pass

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        """See `Scorer`.

        Raises:
            ScenesError: a prompt is outside the grammar.
            ScorerError: an image is not of the second world.
        """
        return [self._number(judge(prompt, image)) for prompt, image in zip(prompts, images, strict=True)]

    def _number(self, verdict: Verdict) -> float:
        return verdict.score


class StrictScenesScorer(ScenesScorer):
    """1 where all facts hold, else 0."""

    def _number(self, verdict: Verdict) -> float:
        return float(verdict.strict)


def judge(prompt: str, image: Image.Image) -> Verdict:
    """What of a prompt holds in an image of one of `SIZES`.

    Raises:
        ScenesError: the prompt is outside the grammar.
        ScorerError: the image is not of the second world.
    """
    if image.size[::-1] not in SIZES:
        known = ", ".join(f"{height}x{width}" for height, width in SIZES)
        raise ScorerError(f"scenes: expected images of {known} pixels, given {image.size[1]}x{image.size[0]}")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255
    return verify(pixels, Scene.parse(prompt))

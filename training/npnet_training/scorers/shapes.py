"""The exact judge of the shapes world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from npnet_training.errors import ScorerError
from npnet_training.shapes.grammar import Facts
from npnet_training.shapes.render import SIZE
from npnet_training.shapes.verify import Verdict, verify

if TYPE_CHECKING:
    from PIL import Image


def judge(prompt: str, image: Image.Image) -> Verdict:
    """What of a prompt holds in an image of 32x32 pixels.

    Raises:
        ShapesError: the prompt is outside the grammar.
        ScorerError: the image is not of the shapes world.
    """
    if image.size != (SIZE, SIZE):
        raise ScorerError(f"shapes: expected images of {SIZE}x{SIZE} pixels, given {image.size}")
    return verify(pixels_of(image), Facts.parse(prompt))


def pixels_of(image: Image.Image) -> NDArray[np.float32]:
    """(3, H, W) in [0, 1]."""
    pixels: NDArray[np.float32] = np.asarray(image.convert("RGB"), dtype=np.float32)
    return pixels.transpose(2, 0, 1) / np.float32(255)


class ShapesScorer:
    """Share of a prompt's facts that hold, 0 to 1."""

    def __init__(self, *, device: str | torch.device = "cpu", offline: bool = False) -> None:
        pass

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        """See `Scorer`.

        Raises:
            PromptsError: a prompt is outside the grammar.
            ScorerError: an image is not of the world.
        """
        return [
            self._number(self._verdict(prompt, image)) for prompt, image in zip(prompts, images, strict=True)
        ]

    def _verdict(self, prompt: str, image: Image.Image) -> Verdict:
        return judge(prompt, image)

    def _number(self, verdict: Verdict) -> float:
        return verdict.score


class StrictShapesScorer(ShapesScorer):
    """1 where all facts hold, else 0."""

    def _number(self, verdict: Verdict) -> float:
        return float(verdict.strict)

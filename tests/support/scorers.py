"""Scorers for the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL.Image import Image


class Moody:
    """Raises at prompt b, gives no number for prompt a in the first batch, likes later batches more."""

    def __init__(self, **options: Any) -> None:
        self._batches = 0

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> list[float]:
        if len(images) > 1:
            self._batches += 1
        if "prompt b" in prompts:
            raise ValueError("no mood for b")
        nan = self._batches == 1 and "prompt a" in prompts
        return [math.nan if nan else float(self._batches)] * len(images)

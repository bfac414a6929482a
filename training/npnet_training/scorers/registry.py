"""Scorers by name: built in, or from other packages by the entry point group `npnet.scorers`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from npnet_training.errors import ScorerError
from npnet_training.plugins import import_plugin, plugin_names

if TYPE_CHECKING:
    from PIL import Image

GROUP = "npnet.scorers"
BUILT_IN = {
    "shapes": "npnet_training.scorers.shapes:ShapesScorer",
    "shapes-strict": "npnet_training.scorers.shapes:StrictShapesScorer",
    "aesthetic": "npnet_training.scorers.aesthetic:Aesthetic",
    "clipscore": "npnet_training.scorers.clip:CLIPScore",
    "hpsv2": "npnet_training.scorers.hpsv2:HPSv2",
    "imagereward": "npnet_training.scorers.imagereward:ImageReward",
    "pickscore": "npnet_training.scorers.clip:PickScore",
}


class Scorer(Protocol):
    """Made as `Class(device=..., offline=...)`."""

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Sequence[float]:
        """A number for each image and its prompt, higher is better."""
        ...


def scorer_names() -> list[str]:
    """All that `load_scorer` takes."""
    return plugin_names(BUILT_IN, GROUP)


def load_scorer(name: str, *, device: str | torch.device = "cpu", offline: bool = False) -> Scorer:
    """The scorer of that name.

    Args:
        name: built in, or an entry point of the group `npnet.scorers`.
        device: where it runs.
        offline: take its weights from the hub's cache only.

    Raises:
        ScorerError: unknown, or it cannot be loaded.
    """
    if name not in scorer_names():
        raise ScorerError(f"unknown scorer {name!r}: expected one of {', '.join(scorer_names())}")
    try:
        scorer: Scorer = import_plugin(name, BUILT_IN, GROUP)(device=device, offline=offline)
        return scorer
    except (ImportError, OSError, ValueError, AttributeError, ScorerError) as error:
        hint = "; --offline takes weights from the hub's cache only: run it once without" if offline else ""
        raise ScorerError(f"the scorer {name} cannot be loaded: {error}{hint}") from error


def score_all(
    scorers: Mapping[str, Scorer], prompts: Sequence[str], images: Sequence[Image.Image]
) -> dict[str, list[float]]:
    """Scores by scorer. An image that a scorer fails on has NaN there, the others their scores.

    Raises:
        ScorerError: a scorer gives no number for any image.
    """
    return {name: _score(name, scorer, prompts, images) for name, scorer in scorers.items()}


def _score(name: str, scorer: Scorer, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
    try:
        return _numbers(scorer.score(prompts, images), len(images))
    except Exception:  # of any kind: one image of many must not end a run of days
        values, reason = [], ""
        for prompt, image in zip(prompts, images, strict=True):
            try:
                values += _numbers(scorer.score([prompt], [image]), 1)
            except Exception as error:
                values.append(math.nan)
                reason = f"{type(error).__name__}: {error}"
        if all(math.isnan(value) for value in values):
            raise ScorerError(
                f"the scorer {name} gives no number for any of {len(values)} images: {reason}"
            ) from None
        return values


def _numbers(values: Sequence[float], count: int) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) != count:
        raise ScorerError(f"expected {count} scores, given {len(numbers)}")
    return numbers

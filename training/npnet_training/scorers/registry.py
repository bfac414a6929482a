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
GIVE_UP = 6  # images without a number, of a scorer that never gave one
BUILT_IN = {
    "shapes": "npnet_training.scorers.shapes:ShapesScorer",
    "shapes-strict": "npnet_training.scorers.shapes:StrictShapesScorer",
    "scenes": "npnet_training.scorers.scenes:ScenesScorer",
    "scenes-strict": "npnet_training.scorers.scenes:StrictScenesScorer",
    "scenes-second": "npnet_training.scorers.scenes:SecondScenesScorer",
    "aesthetic": "npnet_training.scorers.aesthetic:Aesthetic",
    "clipscore": "npnet_training.scorers.clip:CLIPScore",
    "hpsv2": "npnet_training.scorers.hpsv2:HPSv2",
    "imagereward": "npnet_training.scorers.imagereward:ImageReward",
    "pickscore": "npnet_training.scorers.clip:PickScore",
}

NEVER_CHOOSE = {"scenes-second"}
"""Judges that no selection may see: what they say of its results would be worth nothing."""


class Scorer(Protocol):
    """Made as `Class(device=..., offline=...)`."""

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Sequence[float]:
        """A number for each image and its prompt, higher is better."""
        ...


class Lenient:
    """A scorer whose failures are NaN: one image of many must not end a run of days.

    Args:
        name: of the scorer.
        scorer: what may fail, with an exception of any kind.
    """

    def __init__(self, name: str, scorer: Scorer) -> None:
        self._name, self._scorer = name, scorer
        self._failed = 0
        self._works = False

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        """See `Scorer`. An image that the scorer fails on has NaN, the others their scores.

        Raises:
            ScorerError: it never gave a number, for `GIVE_UP` images.
        """
        reason = "it gave NaN"
        try:
            values = _numbers(self._scorer.score(prompts, images), len(images))
        except Exception:
            values = []
            for prompt, image in zip(prompts, images, strict=True):
                try:
                    values += _numbers(self._scorer.score([prompt], [image]), 1)
                except Exception as error:
                    values.append(math.nan)
                    reason = f"{type(error).__name__}: {error}"
        failed = sum(map(math.isnan, values))
        self._failed += failed
        self._works |= failed < len(values)
        if not self._works and self._failed >= GIVE_UP:
            raise ScorerError(
                f"the scorer {self._name} gives no number for any of {self._failed} images: {reason}"
            )
        return values


def scorer_names() -> list[str]:
    """All that `load_scorer` takes."""
    return plugin_names(BUILT_IN, GROUP)


def load_scorer(name: str, *, device: str | torch.device = "cpu", offline: bool = False) -> Scorer:
    """The scorer of that name, `Lenient`.

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
        return Lenient(name, import_plugin(name, BUILT_IN, GROUP)(device=device, offline=offline))
    except (ImportError, OSError, ValueError, AttributeError, ScorerError) as error:
        hint = "; --offline takes weights from the hub's cache only: run it once without" if offline else ""
        raise ScorerError(f"the scorer {name} cannot be loaded: {error}{hint}") from error


def score_all(
    scorers: Mapping[str, Scorer], prompts: Sequence[str], images: Sequence[Image.Image]
) -> dict[str, list[float]]:
    """Scores by scorer.

    Raises:
        ScorerError: see `Lenient`.
    """
    return {name: [*scorer.score(prompts, images)] for name, scorer in scorers.items()}


def _numbers(values: Sequence[float], count: int) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) != count:
        raise ScorerError(f"expected {count} scores, given {len(numbers)}")
    return numbers

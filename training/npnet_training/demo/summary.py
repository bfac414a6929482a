"""The numbers of a demo, from what the judge says of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npnet_training.demo.drawing import PLAIN, Drawn
from npnet_training.demo.worlds import World
from npnet_training.evaluation.statistics import paired
from npnet_training.shapes.verify import Verdict

STRICT = "strict"


def summarise(arms: Mapping[str, Sequence[Drawn]], resamples: int, world: World) -> dict[str, Any]:
    """Rates of each arm, strict and by kind of fact, and paired differences from the plain one.

    Args:
        arms: the same prompts and seeds in each.
        resamples: of the bootstrap over prompts.
        world: theirs.

    Returns:
        By arm, by `strict` or kind of fact: `rate`, the mean over images, and for all arms but the plain one
        the fields of `npnet_training.evaluation.Paired`. A kind that no prompt has (relations, of single
        things) is left out.
    """
    scores = {arm: _scores([item.verdict for item in drawn], world) for arm, drawn in arms.items()}
    groups = [item.prompt for item in arms[PLAIN]]
    found: dict[str, Any] = {}
    for arm, of_arm in scores.items():
        found[arm] = {}
        for name, values in of_arm.items():
            if np.isnan(values).all():
                continue
            found[arm][name] = {"rate": float(np.nanmean(values))}
            if arm != PLAIN:
                compared = paired(scores[PLAIN][name], values, groups, resamples=resamples)
                found[arm][name] |= asdict(compared)
    return found


def _scores(verdicts: Sequence[Verdict], world: World) -> dict[str, NDArray[np.float64]]:
    """Of each image: whether it passes strictly, and the share of its facts of each kind; NaN without any."""
    columns = {STRICT: [float(verdict.strict) for verdict in verdicts]}
    for kind in world.kinds:
        columns[kind] = [_share(verdict, kind, world) for verdict in verdicts]
    return {name: np.array(values, np.float64) for name, values in columns.items()}


def _share(verdict: Verdict, kind: str, world: World) -> float:
    held = [holds for statement, holds in verdict.facts.items() if world.kind_of(statement) == kind]
    return sum(held) / len(held) if held else np.nan


def image_rows(denoiser: str, arms: Mapping[str, Sequence[Drawn]]) -> list[dict[str, Any]]:
    """What is kept of each image: everything the summary is computed from."""
    return [
        {
            "denoiser": denoiser,
            "noise": arm,
            "prompt": item.prompt,
            "seed": item.seed,
            "strict": item.verdict.strict,
            "facts": item.verdict.facts,
        }
        for arm, drawn in arms.items()
        for item in drawn
    ]

"""Whether golden noise is still noise while a network is trained, and whether its pairs allow that."""

from __future__ import annotations

import numpy as np

from npnet_runtime.golden_statistics import collapse_of, related
from npnet_training.errors import TrainError
from npnet_training.training.order import by_group
from npnet_training.training.progress import Progress
from npnet_training.training.source import PairSource

LOOKED_AT, RELATED = 256, 0.3
IN_A_ROW = 2
ADVICE = "--allow-collapse goes on all the same"


def check_pairs(pairs: PairSource, rows: np.ndarray) -> None:
    """Refuse pairs whose targets are independent of their sources.

    The answer to such pairs that has the smallest squared error is the mean of all targets, so that a network
    learns to take the noise away.

    Args:
        pairs: the dataset.
        rows: of it that are finite.

    Raises:
        TrainError: they are.
    """
    found, count = 0.0, 0
    for part in by_group(rows[:LOOKED_AT], pairs.groups):
        batch = pairs.batch(part.tolist())
        found, count = found + len(part) * related(batch.target, batch.source), count + len(part)
    if count and not found / count >= RELATED:
        raise TrainError(
            f"the targets of these pairs do not depend on their sources (mean cosine {found / count:.2f} of "
            f"{count} pairs, expected {RELATED} or more): a network would learn to take the noise away. Give "
            f"pairs made from their own sources, as npnet-collect makes them, or --loss reward; {ADVICE}"
        )


def judge(found: dict[str, float], progress: Progress, *, allowed: bool) -> list[str]:
    """What is wrong with a validation's golden noise, in words; counted in the progress.

    Raises:
        TrainError: it has collapsed for the second time in a row, and that is not allowed.
    """
    problems = collapse_of(found)
    progress.collapsed = progress.collapsed + 1 if problems else 0
    if progress.collapsed >= IN_A_ROW and not allowed:
        raise TrainError(
            f"golden noise has collapsed, {progress.collapsed} validations in a row: {'; '.join(problems)}. "
            f"Raise the penalty of a reward, lower --optimizer.learning-rate, or look at the pairs; {ADVICE}"
        )
    return problems

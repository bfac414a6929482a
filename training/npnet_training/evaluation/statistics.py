"""Paired comparison: the same prompts and seeds in both arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from npnet_training.errors import EvaluateError

CHUNK = 500  # resamples at once: bounds the memory


@dataclass(frozen=True)
class Paired:
    """An arm against the plain one.

    Args:
        difference: mean of arm minus plain.
        low: end of its 95 % confidence interval.
        high: the other end.
        wins: pairs in which the arm is better.
        ties: pairs in which both are equal.
        losses: pairs in which the arm is worse.
        p: two-sided sign test: probability of so lopsided a result if neither is better.
        pairs: compared; those where either has no number are left out.
    """

    difference: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    p: float
    pairs: int

    @property
    def winning_rate(self) -> float:
        """Share of pairs won, the paper's measure; a tie counts as lost."""
        return self.wins / self.pairs


def in_points(found: Mapping[str, Any]) -> str:
    """The difference of two shares in percentage points, with its interval; from the fields of `Paired`."""
    difference, low, high = (100 * found[key] for key in ("difference", "low", "high"))
    return f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"


def paired(
    plain: Sequence[float] | NDArray[np.float64],
    other: Sequence[float] | NDArray[np.float64],
    groups: Sequence[str] | NDArray[np.str_] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Paired:
    """Compare two arms.

    The interval is the percentile bootstrap (Efron and Tibshirani 1993, chapter 13). Whole groups are
    resampled, because images of one prompt are not independent.

    Args:
        plain: N scores.
        other: N scores of the same prompts and seeds.
        groups: the prompt of each; None if all are different.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        EvaluateError: arms of different lengths, or no pair in which both have a number.
    """
    difference = np.asarray(other, np.float64) - np.asarray(plain, np.float64)
    usable = np.isfinite(difference)
    if not usable.any():
        raise EvaluateError("no image has a score in both arms: see what the scorer says of these images")
    names = (
        np.arange(len(difference))
        if groups is None
        else np.unique(np.asarray(groups), return_inverse=True)[1]
    )
    difference, names = difference[usable], np.unique(names[usable], return_inverse=True)[1]
    count = int(names.max()) + 1
    sums, sizes = np.bincount(names, difference, count), np.bincount(names, minlength=count)
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, CHUNK):
        drawn = generator.integers(0, count, (min(CHUNK, resamples - start), count))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    ties, mean = len(difference) - wins - losses, float(difference.mean())
    return Paired(mean, float(low), float(high), wins, ties, losses, p, len(difference))

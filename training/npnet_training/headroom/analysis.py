"""What the noise decides: shares of variance between seeds and prompts, and the best of N seeds.

Shares are those of the one-way random-effects analysis of variance. The best of k of n seeds is the mean of
the maximum over all choices of k, by order statistics. Intervals are the percentile bootstrap over prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def best_of_each(scores: Values) -> Values:
    """Mean of the best of 1, 2, ... n seeds, for each prompt: (prompts, n) both."""
    ordered = np.sort(scores, axis=1)
    n = ordered.shape[1]
    weights = np.array([[comb(place, k - 1) / comb(n, k) for place in range(n)] for k in range(1, n + 1)])
    return np.asarray(ordered @ weights.T)


def seed_share(values: Values) -> float:
    """Share of the variance that is between the seeds of a prompt, (prompts, n); NaN without any variance."""
    n = values.shape[1]
    within = float(values.var(axis=1, ddof=1).mean())
    between = max(float(values.mean(1).var(ddof=1)) - within / n, 0.0) if len(values) > 1 else 0.0
    return within / (within + between) if within + between > 0 else float("nan")


def seed_deviation(values: Values) -> float:
    """Standard deviation between the seeds of a prompt."""
    return float(np.sqrt(values.var(axis=1, ddof=1).mean()))


def with_interval(values: Values, statistic: Callable[[Values], float], resamples: int) -> Estimate:
    """A statistic of (prompts, n) values, prompts resampled."""
    low, high = _ends(values, statistic, resamples)
    return Estimate(statistic(values), float(low), float(high))


def curve(scores: Values, resamples: int) -> list[Estimate]:
    """Gain of the best of 1, 2, ... n seeds over one seed, with intervals."""
    gains = best_of_each(scores)
    gains = gains - gains[:, :1]
    ends = _ends(gains, lambda part: part.mean(0), resamples)
    return [Estimate(*map(float, three)) for three in zip(gains.mean(0), *ends, strict=True)]


def _ends(values: Values, statistic: Callable[[Values], Any], resamples: int) -> Values:
    """The ends of the interval of each number that a statistic gives, (2, ...)."""
    random, count = np.random.default_rng(0), len(values)
    found = [statistic(values[random.integers(0, count, count)]) for _ in range(resamples)]
    return np.asarray(np.nanpercentile(found, [2.5, 97.5], axis=0))


def verdict(scorer: str, share: Estimate, best: list[Estimate], deviation: float) -> str:
    """In words, what golden noise can gain by a judge at most.

    Args:
        scorer: its name.
        share: of the seeds in the variance of its scores.
        best: gains of the best of 1, 2, ... n seeds.
        deviation: standard deviation of its scores over prompts and seeds.
    """
    last = best[-1]
    relative = last.value / deviation if deviation > 0 else 0.0
    if not deviation > 0:
        return f"{scorer} gives all images the same score: it cannot tell what noise does."
    kind = (
        "there is next to nothing to gain" if relative < 0.1
        else "there is little to gain" if relative < 0.4
        else "there is something to gain"
    )  # fmt: skip
    low, middle, high = (100 * value for value in (share.low, share.value, share.high))
    gain = f"{last.value:+.4g} ({last.low:+.4g} to {last.high:+.4g})"
    return (
        f"By {scorer} the seed decides {middle:.0f} % ({low:.0f} to {high:.0f}) of the score here: {kind}. "
        f"The best of {len(best)} seeds is {gain} better than one, {relative:.2f} of a standard deviation; "
        "golden noise, at the cost of one, can hardly gain more."
    )

import math

import numpy as np
import pytest
import torch

from npnet_training.errors import EvaluateError
from npnet_training.evaluation.features import mean_distance
from npnet_training.evaluation.statistics import in_points, paired
from npnet_training.noise_statistics import noise_statistics


def test_counts_mean_and_sign_test() -> None:
    found = paired([0, 0, 0, 0, 1], [1, 1, 1, 0, 0])
    assert (found.wins, found.ties, found.losses, found.pairs) == (3, 1, 1, 5)
    assert found.difference == pytest.approx(0.4)
    assert found.winning_rate == 0.6
    # two-sided exact binomial of 3 of 4: 2 * (1 + 4) / 16
    assert found.p == pytest.approx(10 / 16)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        plain = generator.normal(size=60)
        found = paired(plain, plain + generator.normal(0.3, 1, size=60), resamples=500, seed=seed)
        covered += found.low <= 0.3 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_images_of_one_prompt_are_not_independent() -> None:
    generator = np.random.default_rng(1)
    difference = np.repeat(generator.normal(size=40), 10)
    groups = np.repeat([f"prompt {n}" for n in range(40)], 10)
    zeros = np.zeros(400)
    alone, grouped = paired(zeros, difference), paired(zeros, difference, groups)
    assert grouped.difference == pytest.approx(alone.difference)
    # ten copies of each prompt tell no more than one: sqrt(10) wider
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(10), rel=0.15)


def test_images_without_a_score_are_left_out() -> None:
    found = paired([0, math.nan, 0], [1, 1, math.nan], ["a", "b", "c"])
    assert (found.pairs, found.difference) == (1, 1.0)
    with pytest.raises(EvaluateError, match="no image has a score in both arms"):
        paired([math.nan], [1.0])


def test_equal_arms() -> None:
    found = paired([1.0, 2.0], [1.0, 2.0])
    assert (found.difference, found.low, found.high, found.p, found.ties) == (0, 0, 0, 1.0, 2)


def test_noise() -> None:
    torch.manual_seed(0)
    white = torch.randn(4, 4, 64, 64)
    found = noise_statistics(white, white)
    for name, tolerance in (("mean", 0.05), ("kurtosis", 0.2), ("slope", 0.1), ("change", 1e-12)):
        assert max(map(abs, found[name])) <= tolerance, name
    smooth = torch.nn.functional.avg_pool2d(white, 3, 1, 1)
    assert max(noise_statistics(smooth, white)["slope"]) < -0.5
    assert noise_statistics(2 * white + 1, white)["std"] == pytest.approx([2.0] * 4, rel=0.02)
    uniform = torch.rand(1, 4, 64, 64)
    assert noise_statistics(uniform, uniform)["kurtosis"] == pytest.approx([-1.2], abs=0.05)


def test_mean_distance() -> None:
    assert mean_distance(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])) == pytest.approx(10 / 3)


def test_shares_are_told_in_points() -> None:
    found = {"difference": 0.245, "low": -0.0161, "high": 0.274}
    assert in_points(found) == "+24.5 (-1.6 to +27.4)"

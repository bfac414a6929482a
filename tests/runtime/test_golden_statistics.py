"""Statistics of golden noise against numbers known beforehand, and what counts as collapsed."""

from __future__ import annotations

import math

import pytest
import torch

from npnet_runtime.golden_statistics import STATISTICS, collapse_of, golden_statistics, related

NOISE = torch.randn(16, 4, 24, 20, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(16, 4, 24, 20, generator=torch.Generator().manual_seed(1))


def test_numbers() -> None:
    found = golden_statistics(0.6 * NOISE + 0.8 * OTHER, NOISE, 0.6 * NOISE - 0.8 * OTHER)
    assert set(found) == {*STATISTICS, "any_prompt"}
    assert found["std"] == pytest.approx(1, abs=0.02)
    assert found["norm_ratio"] == pytest.approx(1, abs=0.02)
    assert found["cosine"] == pytest.approx(0.4 / math.hypot(0.4, 0.8), abs=0.02)
    assert found["change"] == pytest.approx(math.hypot(0.4, 0.8), abs=0.02)
    assert found["neighbours"] == pytest.approx(0, abs=0.02)
    assert found["any_prompt"] == 0  # what it has in common points the other way
    same = golden_statistics(1.2 * NOISE, NOISE, 1.2 * NOISE)
    assert same["cosine"] == pytest.approx(-1)
    assert same["any_prompt"] == pytest.approx(1)
    assert golden_statistics(NOISE, NOISE, NOISE)["any_prompt"] == 1
    smooth = (NOISE + NOISE.roll(1, 3)) / 2**0.5
    assert golden_statistics(smooth, NOISE)["neighbours"] == pytest.approx(0.25, abs=0.03)  # of one direction


@pytest.mark.parametrize(
    ("golden", "problem"),
    [
        (NOISE, ""),
        (0.95 * NOISE, ""),  # the change is along the noise, and small
        (0.9 * NOISE + 0.43 * OTHER, ""),
        (0.2 * NOISE, "its norm is 0.20 of the noise's"),
        (3 * NOISE, "its norm is 3.00"),
        (0.3 * NOISE + 0.45 * OTHER, "it takes the noise away"),
        (NOISE.mean((2, 3), keepdim=True).expand_as(NOISE) * 20, "neighbours have a correlation of 1.00"),
        (NOISE * torch.nan, "its norm is nan"),
    ],
)
def test_collapse(golden: torch.Tensor, problem: str) -> None:
    found = collapse_of(golden_statistics(golden, NOISE))
    assert any(problem in one for one in found) if problem else found == []


def test_related() -> None:
    assert related(NOISE, OTHER) == pytest.approx(0, abs=0.02)
    assert related(NOISE + 0.1 * OTHER, NOISE) > 0.9

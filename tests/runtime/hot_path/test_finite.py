"""What rounds to infinity, against what PyTorch rounds to infinity."""

from __future__ import annotations

import math

import pytest
import torch

from npnet_runtime.hot_path.finite import all_finite

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_at_the_edge(dtype: torch.dtype) -> None:
    """On both sides of the largest number, a bit of float32 at a time."""
    largest = torch.tensor(min(torch.finfo(dtype).max, torch.finfo(torch.float32).max))
    half_a_step = {torch.float16: 16.0, torch.bfloat16: 2.0**119}.get(dtype, 0.0)
    for start in (largest, largest + half_a_step):
        for target in (0.0, math.inf):
            value = start.clone()
            for _ in range(3):
                peak = float(value)
                assert all_finite([1.0, peak], dtype) is bool(value.to(dtype).isfinite())
                value = torch.nextafter(value, torch.tensor(target))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("peaks", [[math.nan], [1.0, math.nan], [math.nan, 1.0], [math.inf, 2.0]])
def test_not_finite_in_any_order(peaks: list[float], dtype: torch.dtype) -> None:
    assert not all_finite(peaks, dtype)
    assert all_finite([0.0, 4.5], dtype)

"""Whether golden noise is finite in its dtype, by the largest magnitudes that its last step found."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

# The smallest magnitudes in float32 that a dtype rounds to infinity: half a step above its largest number.
_OVERFLOWS = {
    torch.float16: 65520.0,
    torch.bfloat16: (2 - 2**-8) * 2.0**127,
    torch.float32: math.inf,
    torch.float64: math.inf,
}


def all_finite(peaks: Iterable[float], dtype: torch.dtype) -> bool:
    """Whether no value is NaN, infinite, or will be once it is rounded to `dtype`.

    Args:
        peaks: the largest magnitude of each noise in float32, NaN where one value is.
        dtype: float16, bfloat16, float32 or float64.
    """
    limit = _OVERFLOWS[dtype]
    return all(peak < limit for peak in peaks)  # NaN is not

"""Exact scaling of a matrix to entries of order one, so that squares neither overflow nor vanish."""

import torch
from torch import Tensor


def normalise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each matrix by a power of two near its largest entry, exactly.

    Args:
        matrix: `(..., R, C)` float32, on any device.

    Returns:
        The scaled matrix in float64, largest magnitude in [1/2, 1) except at the ends of float32's range, and
        the scale `(...)` in float64, 1 for a zero matrix. NaN and infinity pass through, to be caught later.
    """
    wide = matrix.double()
    largest = wide.abs().amax((-2, -1))
    usable = torch.isfinite(largest) & (largest > 0)
    exponent = torch.frexp(torch.where(usable, largest, 0.5)).exponent.clamp(-120, 120)  # `ldexp` is float32
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    return wide / scale[..., None, None], scale

"""How golden: noise between plain (0) and golden (1), with the statistics that noise between them has.

A weighted mean of the two would have less variance than either, which a sampler takes for noise of a lower
level. So each noise is mixed and then rescaled about its mean: mean and standard deviation go from those of
the plain noise to those of the golden noise in a straight line.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npnet_runtime.errors import InputError


def check_strength(strength: object) -> float:
    """A strength as a number.

    Raises:
        InputError: none from 0 to 1.
    """
    number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
    if not number or not 0 <= strength <= 1:  # type: ignore[operator]
        raise InputError(f"strength: expected a number from 0 (plain) to 1 (golden), given {strength!r}")
    return float(strength)  # type: ignore[arg-type]


def mix(noise: Tensor, golden: Tensor, strength: float) -> Tensor:
    """Noise between plain and golden.

    Args:
        noise: (B, C, H, W).
        golden: like it.
        strength: 0 for the noise, 1 for the golden noise, each to the last bit.

    Returns:
        (B, C, H, W) of the dtype of the noise.
    """
    if strength in (0, 1):
        return golden if strength else noise.clone()
    plain, end = noise.float(), golden.float()
    mixed = torch.lerp(plain, end, strength)
    (spread, mean), own, other = (torch.std_mean(x, (1, 2, 3), keepdim=True) for x in (mixed, plain, end))
    wanted = torch.lerp(own[0], other[0], strength)
    return (mean + (mixed - mean) * (wanted / spread)).to(noise.dtype)

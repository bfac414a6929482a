"""The precision that references accumulate in."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

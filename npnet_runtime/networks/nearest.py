"""Nearest resize by indices that are known ahead: what every engine can place, and may fold into others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_index(source: int, target: int) -> Tensor:
    """Source position of each target position in a nearest resize, (target,) int64 on the CPU.

    Asked of `interpolate` itself, whose float32 rounding is part of the published network.
    """
    positions = torch.arange(source, dtype=torch.float32, device="cpu")[None, None]
    return F.interpolate(positions, size=target, mode="nearest").flatten().long()

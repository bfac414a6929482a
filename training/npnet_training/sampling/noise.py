"""Source noise that is known by its seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """(B, *shape) float32 standard normal noise on the CPU, each row from its own seed alone.

    The same on every device and in every batch; `torch.randn` with a CPU generator of that seed.
    """
    rows = [torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.zeros(0, *shape)

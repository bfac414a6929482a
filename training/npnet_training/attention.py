"""Attention over few tokens on a CPU, where the fused kernel is slower backwards than plain products."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

FEW = 1024
"""Tokens up to which the products fit into the caches."""


def attention_of_few(
    tokens: int, device: torch.device, *, recomputed: bool = False
) -> AbstractContextManager[None]:
    """Plain products for few tokens on a CPU: of 32 the fused kernel takes a fifth of a training step.

    Nothing where what is inside is computed again for the gradient (`recomputed`), which happens outside.
    """
    few = device.type == "cpu" and tokens <= FEW and not recomputed
    return sdpa_kernel(SDPBackend.MATH) if few else nullcontext()

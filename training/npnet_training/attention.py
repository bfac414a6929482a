"""Attention over few tokens on a CPU, where the fused kernel is slower backwards than plain products."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

FEW = 1024
"""Tokens up to which the products fit into the caches."""


def attention_of_few(tokens: int, device: torch.device) -> AbstractContextManager[None]:
    """Plain products for few tokens on a CPU: of 32 the fused kernel takes a fifth of a training step."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and tokens <= FEW else nullcontext()

"""Group norms that every engine can place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# torch 2.6 cannot tell an export from another compilation; the same numbers come out of either.
_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`F.group_norm`; in an exported graph as mean, difference and root.

    ONNX's GroupNormalization is inlined by ONNX Runtime to operators on shapes, which only a CPU runs, so
    that its CUDA provider refuses the graph; TensorRT 10.7 fails on it.

    Args:
        x: (B, C, ...).
        groups: of the channels.
        weight: (C,), or None.
        bias: (C,), or None.
        eps: added to the variance.
    """
    if not _exporting():
        return F.group_norm(x, groups, weight, bias, eps)
    grouped = x.unflatten(1, (groups, -1))
    within = tuple(range(2, grouped.dim()))
    centred = grouped - grouped.mean(within, keepdim=True)
    normal = centred * (centred.square().mean(within, keepdim=True) + eps).rsqrt()
    result = normal.flatten(1, 2)
    ones = (1,) * (x.dim() - 2)
    if weight is not None:
        result = result * weight.view(-1, *ones)
    return result if bias is None else result + bias.view(-1, *ones)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` by `group_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

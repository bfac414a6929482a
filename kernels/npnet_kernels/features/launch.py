"""The launch of the residual map's kernel. Imports Triton when called."""

import torch
from torch import Tensor

from npnet_kernels.backends import launchable
from npnet_kernels.tiles import power_of_two


def launch_residual_map(
    x: Tensor,
    index: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    column_index: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """`(B, C, n, W)` float32 from operands as `residual_map` takes them."""
    from npnet_kernels.features.kernels import residual_kernel

    batch, tokens, width = x.shape
    channels, side = weight.shape
    columns = column_index.shape[0]
    out = torch.empty(batch, channels, side, columns, dtype=torch.float32, device=x.device)
    if isinstance(batch, int) and batch == 0:
        return out
    block_x = 16  # small: each program repeats the statistics of 7 rows, and there are many to be had
    launchable(residual_kernel)[(side, -(-columns // block_x), batch)](
        x.contiguous(), index, norm_weight.contiguous(), norm_bias.contiguous(), column_index,
        weight.contiguous(), bias.contiguous(), out, tokens, width, side, channels, columns,
        EPS=eps, SIDE=power_of_two(side), BLOCK_X=block_x, BLOCK_S=256, num_warps=4,
    )  # fmt: skip
    return out

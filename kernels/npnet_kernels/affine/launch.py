"""The launch of the text affine kernels. Imports Triton when called."""

import torch
from torch import Tensor

from npnet_kernels.backends import launchable
from npnet_kernels.tiles import DOT, power_of_two

_BLOCK_B = 16  # the smallest side of tl.dot, for every batch: a row does not depend on its neighbours
_BLOCK_K = 256


def choose_precision(*dtypes: torch.dtype) -> str:
    """How `tl.dot` multiplies: TF32 holds half-precision numbers exactly, float32 needs the full product."""
    return "ieee" if torch.float32 in dtypes else "tf32"


def launch_text_affine(prompt_embeds: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`(B, 2C)` float32 from operands as `text_affine` takes them."""
    from npnet_kernels.affine.kernels import partial_kernel, sum_kernel

    batch = prompt_embeds.shape[0]
    outputs, terms = weight.shape
    out = torch.empty(batch, outputs, dtype=torch.float32, device=weight.device)
    if isinstance(batch, int) and batch == 0:
        return out
    x = prompt_embeds.reshape(batch, terms)
    x = x if x.stride(1) == 1 else x.contiguous()
    slices = -(-terms // _BLOCK_K)
    padded = power_of_two(outputs, DOT)
    partial = torch.empty(slices, batch, outputs, dtype=torch.float32, device=weight.device)
    launchable(partial_kernel)[(slices,)](
        x, weight, partial, batch, outputs, terms, x.stride(0), weight.stride(0), weight.stride(1),
        PRECISION=choose_precision(x.dtype, weight.dtype), BLOCK_B=_BLOCK_B, OUTPUTS=padded, BLOCK_K=_BLOCK_K,
    )  # fmt: skip
    launchable(sum_kernel)[(batch,)](
        partial, bias.contiguous(), out, batch, outputs, slices, OUTPUTS=padded, BLOCK_S=256
    )
    return out

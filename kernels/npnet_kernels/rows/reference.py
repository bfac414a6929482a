"""The layer norm in plain PyTorch, and the precision of the products behind it."""

import torch
from torch import Tensor
from torch.nn import functional

from npnet_kernels.backends import interpreting
from npnet_kernels.precision import widen


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of the last dimension in float32, float64 as it is."""
    x = widen(x)
    return functional.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)


def gather_reference(x_BNC: Tensor, index: Tensor, pieces: int = 1) -> Tensor:
    """Rows (B, N', pieces * C): each the concatenation of the `pieces` rows that `index` names."""
    return x_BNC.index_select(1, index).unflatten(1, (-1, pieces)).flatten(2)


def product_precision(dtype: torch.dtype) -> str:
    """How `rows.kernels.product` multiplies operands of a dtype.

    float32 by three products in TF32, as good as float32. Triton's interpreter would multiply the bits of
    bfloat16 as integers, so there these are widened, which keeps their values.
    """
    if dtype == torch.bfloat16 and interpreting():
        return "widened"
    return "tf32x3" if dtype == torch.float32 else "ieee"

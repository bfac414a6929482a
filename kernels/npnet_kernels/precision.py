"""The precision that references accumulate in, and that PyTorch was told to multiply in."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def products_in_tf32() -> bool:
    """Whether products of float32 matrices on CUDA are rounded to TF32."""
    matmul = torch.backends.cuda.matmul
    # The newer setting, since torch 2.9: with it, reading the older one can fail.
    precision = getattr(matmul, "fp32_precision", None)
    return bool(matmul.allow_tf32 if precision is None else precision == "tf32")

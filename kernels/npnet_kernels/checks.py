"""Checks of operands, with messages that say what was expected, what was given and what helps."""

import torch
from torch import Tensor

from npnet_kernels.errors import KernelInputError

FLOATING = (torch.float32, torch.float16, torch.bfloat16)


def check_dtype(name: str, x: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATING) -> None:
    """Raise `KernelInputError` unless `x` has one of `dtypes`."""
    if x.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise KernelInputError(f"{name}: expected {expected}; given {x.dtype}. Convert it with .to()")


def check_operand(
    name: str,
    x: Tensor,
    shape: tuple[int, ...],
    beside: Tensor,
    dtypes: tuple[torch.dtype, ...] = FLOATING,
) -> None:
    """Raise `KernelInputError` unless `x` has this shape, one of `dtypes`, and the device of `beside`."""
    if tuple(x.shape) != shape:
        raise KernelInputError(
            f"{name}: expected shape {shape} beside an input of shape {tuple(beside.shape)}; "
            f"given {tuple(x.shape)}"
        )
    check_dtype(name, x, dtypes)
    if x.device != beside.device:
        raise KernelInputError(
            f"{name}: expected on {beside.device} like the first input; "
            f"given on {x.device}. Move it with .to()"
        )


def check_index(name: str, index: Tensor, shape: tuple[int, ...], beside: Tensor) -> None:
    """Raise `KernelInputError` unless `index` is int32, contiguous, of this shape, beside `beside`.

    Its values are not looked at: the host would wait for the device.
    """
    check_operand(name, index, shape, beside, (torch.int32,))
    if not index.is_contiguous():
        raise KernelInputError(f"{name}: expected a contiguous tensor; call .contiguous() on it")

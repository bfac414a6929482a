"""The public `residual_map`."""

import torch
from torch import Tensor

from npnet_kernels.backends import Backend, backend_for, device_guard, full_precision, needs_operator
from npnet_kernels.checks import check_dtype, check_index, check_operand
from npnet_kernels.errors import KernelInputError
from npnet_kernels.features.reference import residual_map_reference

MOST_SIDE = 16  # tokens along a side of the last map that the registers of a program hold


def residual_map(
    x: Tensor,
    index: Tensor,
    norm: tuple[Tensor, Tensor],
    column_index: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    backend: Backend = "auto",
) -> Tensor:
    """Last norm, selection of features and 1x1 convolution of NPNet's residual branch, in float32.

    The rows of the NHWC feature map are read as channels, as the published code does (Zhou et al., arXiv
    2411.09502, code: the layout that released weights were trained with).

    Args:
        x: `(B, n * n, width)` float16, bfloat16 or float32, any strides.
        index: `(n * n,)` int32, the row of `x` of each token, row by row of the map.
        norm: weight and bias `(width,)`.
        column_index: `(W,)` int32, the feature for each column of the result.
        weight: `(C, n)`, any of the three dtypes; n at most 16 for the kernel.
        bias: `(C,)`.
        eps: of the norm.
        backend: `"torch"` for the plain reference, `"triton"` for the kernel.

    Returns:
        `(B, C, n, W)` float32.

    Raises:
        KernelInputError: shapes, dtypes or devices do not fit together.
        BackendUnavailableError: `backend="triton"` cannot run here.
    """
    _check(x, index, norm, column_index, weight, bias)
    chosen = backend_for(x, backend)
    arguments = (x, index, *norm, column_index, weight, bias, eps)
    if not needs_operator(chosen):
        with full_precision(x):
            return residual_map_reference(*arguments)
    if chosen == "triton" and weight.shape[1] > MOST_SIDE:
        raise KernelInputError(
            f"the kernel takes maps of up to {MOST_SIDE} tokens a side; given {weight.shape[1]}. "
            f"Use backend='torch'"
        )
    import npnet_kernels.features.operators  # noqa: F401

    with device_guard(x):
        return torch.ops.npnet.residual_map(*arguments, chosen)


def _check(
    x: Tensor,
    index: Tensor,
    norm: tuple[Tensor, Tensor],
    column_index: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> None:
    if x.dim() != 3 or 0 in x.shape[1:]:
        raise KernelInputError(f"x: expected shape (B, n * n, width); given {tuple(x.shape)}")
    check_dtype("x", x)
    tokens, width = x.shape[1:]
    if weight.dim() != 2 or weight.shape[1] ** 2 != tokens:
        raise KernelInputError(
            f"weight: expected shape (C, n) with n * n = {tokens} tokens; given {tuple(weight.shape)}"
        )
    check_operand("weight", weight, tuple(weight.shape), x)
    check_operand("bias", bias, (weight.shape[0],), x)
    check_index("index", index, (tokens,), x)
    check_index("column_index", column_index, (column_index.numel(),), x)
    for name, tensor in zip(("norm weight", "norm bias"), norm, strict=True):
        check_operand(name, tensor, (width,), x)

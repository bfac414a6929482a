"""The public `fused_linear`."""

import torch
from torch import Tensor

from npnet_kernels.backends import Backend, backend_for, device_guard, full_precision, needs_operator
from npnet_kernels.checks import check_dtype, check_index, check_operand
from npnet_kernels.errors import KernelInputError
from npnet_kernels.linear.reference import fused_linear_reference


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: tuple[Tensor, Tensor] | None = None,
    index: Tensor | None = None,
    residual: Tensor | None = None,
    residual_index: Tensor | None = None,
    gelu: bool = False,
    eps: float = 1e-5,
    backend: Backend = "auto",
) -> Tensor:
    """`residual + gelu(norm(gather(x)) W^T + b)` in one launch, each part but the product optional.

    The products of a Swin block and of patch merging (Liu et al., ICCV 2021, section 3.1 and equation 3). All
    but the operands of the product is float32.

    Args:
        x: `(B, N, C)` float16, bfloat16 or float32, any strides.
        weight: `(C', pieces * C)` in the dtype of `x`.
        bias: `(C',)`, any of the three dtypes.
        norm: weight and bias `(pieces * C,)` of a layer norm of the gathered rows.
        index: `(N' * pieces,)` int32; row i of the product is the concatenation of the rows
            `index[i * pieces:(i + 1) * pieces]` of `x`. Without it pieces is 1, and rows are as they are.
        residual: `(B, N', C')` in the dtype of `x`, added last.
        residual_index: `(N',)` int32, the row of `residual` that belongs to each row.
        gelu: whether the exact GELU comes before the sum.
        eps: of the norm.
        backend: `"torch"` for the plain reference, `"triton"` for the kernel.

    Returns:
        `(B, N', C')` in the dtype of `x`.

    Raises:
        KernelInputError: shapes, dtypes or devices do not fit together.
        BackendUnavailableError: `backend="triton"` cannot run here.
    """
    norm_weight, norm_bias = norm or (None, None)
    _check(x, weight, bias, norm, index, residual, residual_index)
    chosen = backend_for(x, backend)
    arguments = (x, weight, bias, norm_weight, norm_bias, index, residual, residual_index, gelu, eps)
    if not needs_operator(chosen):
        with full_precision(x):
            return fused_linear_reference(*arguments)
    import npnet_kernels.linear.operators  # noqa: F401

    with device_guard(x):
        return torch.ops.npnet.fused_linear(*arguments, chosen)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: tuple[Tensor, Tensor] | None,
    index: Tensor | None,
    residual: Tensor | None,
    residual_index: Tensor | None,
) -> None:
    if x.dim() != 3 or 0 in x.shape[1:]:
        raise KernelInputError(f"x: expected shape (B, N, C); given {tuple(x.shape)}")
    check_dtype("x", x)
    batch, tokens, width = x.shape
    if weight.dim() != 2 or 0 in weight.shape or weight.shape[1] % width:
        raise KernelInputError(
            f"weight: expected shape (C', pieces * {width}) beside an input of shape {tuple(x.shape)}; "
            f"given {tuple(weight.shape)}"
        )
    columns, terms = weight.shape
    check_operand("weight", weight, (columns, terms), x, (x.dtype,))
    pieces = terms // width
    if index is not None:
        if index.dim() != 1 or index.shape[0] % pieces:
            raise KernelInputError(
                f"index: expected {pieces} rows of the input for each row of the product, as weight has "
                f"{terms} terms and the input {width}; given {tuple(index.shape)}"
            )
        check_index("index", index, tuple(index.shape), x)
        tokens = index.shape[0] // pieces
    elif pieces != 1:
        raise KernelInputError(f"weight: expected {width} terms without an index; given {terms}")
    if bias is not None:
        check_operand("bias", bias, (columns,), x)
    for name, tensor in zip(("norm weight", "norm bias"), norm or (), strict=False):
        check_operand(name, tensor, (terms,), x)
    if residual is not None:
        check_operand("residual", residual, (batch, tokens, columns), x, (x.dtype,))
        if residual_index is not None:
            check_index("residual_index", residual_index, (tokens,), x)
    elif residual_index is not None:
        raise KernelInputError("residual_index: expected a residual beside it; given none")

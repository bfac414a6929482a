"""The public `window_attention`."""

import torch
from torch import Tensor

from npnet_kernels.attention.reference import window_attention_reference
from npnet_kernels.backends import Backend, backend_for, device_guard, full_precision, needs_operator
from npnet_kernels.checks import check_dtype, check_index, check_operand
from npnet_kernels.errors import KernelInputError

MOST_WINDOW_TOKENS = 64  # whose scores the registers of a program hold
MOST_HEAD_WIDTH = 64


def window_attention(
    x: Tensor,
    index: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    score_bias: Tensor,
    *,
    eps: float = 1e-5,
    backend: Backend = "auto",
) -> Tensor:
    """Layer norm, product to queries, keys and values, and attention inside each window.

    The first half of a Swin block (Liu et al., ICCV 2021, section 3.2) but for the last product. Norm and
    softmax are computed in float32, products accumulated in it.

    Args:
        x: `(B, N, C)` float16, bfloat16 or float32, any strides.
        index: `(N,)` int32, the row of `x` that is the i-th of the windows, which are runs of `L` rows.
        norm_weight: `(C,)`, any of the three dtypes.
        norm_bias: `(C,)`.
        weight: `(3 C, C)` in the dtype of `x`: all queries, then all keys, then all values.
        bias: `(3 C,)`.
        score_bias: `(1 or N / L, heads, L, L)` float32, added to the scores; L and C / heads at most 64 for
            the kernel.
        eps: of the norm.
        backend: `"torch"` for the plain reference, `"triton"` for the kernel.

    Returns:
        `(B, N, C)` in the dtype of `x`: the heads side by side, rows in the order of the windows.

    Raises:
        KernelInputError: shapes, dtypes or devices do not fit together.
        BackendUnavailableError: `backend="triton"` cannot run here.
    """
    _check(x, index, norm_weight, norm_bias, weight, bias, score_bias)
    chosen = backend_for(x, backend)
    arguments = (x, index, norm_weight, norm_bias, weight, bias, score_bias, eps)
    if not needs_operator(chosen):
        with full_precision(x):
            return window_attention_reference(*arguments)
    if chosen == "triton":
        _check_size(x, score_bias)
    import npnet_kernels.attention.operators  # noqa: F401

    with device_guard(x):
        return torch.ops.npnet.window_attention(*arguments, chosen)


def _check(
    x: Tensor,
    index: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    score_bias: Tensor,
) -> None:
    if x.dim() != 3 or 0 in x.shape[1:]:
        raise KernelInputError(f"x: expected shape (B, N, C); given {tuple(x.shape)}")
    check_dtype("x", x)
    tokens, width = x.shape[1:]
    check_index("index", index, (tokens,), x)
    check_operand("norm_weight", norm_weight, (width,), x)
    check_operand("norm_bias", norm_bias, (width,), x)
    check_operand("weight", weight, (3 * width, width), x, (x.dtype,))
    check_operand("bias", bias, (3 * width,), x)
    shape = tuple(score_bias.shape)
    if len(shape) != 4 or shape[2] != shape[3] or 0 in shape or tokens % shape[2] or width % shape[1]:
        raise KernelInputError(
            f"score_bias: expected shape (1 or N / L, heads, L, L), L a divisor of N = {tokens} and heads "
            f"one of C = {width}; given {shape}"
        )
    if shape[0] not in (1, tokens // shape[2]):
        raise KernelInputError(
            f"score_bias: expected one for all windows, or one for each of {tokens // shape[2]}; "
            f"given {shape[0]}"
        )
    check_operand("score_bias", score_bias, shape, x, (torch.float32,))


def _check_size(x: Tensor, score_bias: Tensor) -> None:
    heads, window_tokens = score_bias.shape[1:3]
    if window_tokens > MOST_WINDOW_TOKENS or x.shape[2] // heads > MOST_HEAD_WIDTH:
        raise KernelInputError(
            f"the kernel takes windows of up to {MOST_WINDOW_TOKENS} tokens and heads of up to "
            f"{MOST_HEAD_WIDTH} channels; given {window_tokens} and {x.shape[2] // heads}. "
            f"Use backend='torch'"
        )

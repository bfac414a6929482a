"""The launch of the window attention kernel. Imports Triton when called."""

import torch
from torch import Tensor

from npnet_kernels.backends import launchable
from npnet_kernels.rows.reference import product_precision
from npnet_kernels.tiles import DOT, power_of_two


def launch_window_attention(
    x: Tensor,
    index: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    score_bias: Tensor,
    eps: float,
) -> Tensor:
    """`(B, N, C)` from operands as `window_attention` takes them."""
    from npnet_kernels.attention.kernels import window_attention_kernel

    batch, tokens, width = x.shape
    bias_windows, heads, window_tokens = score_bias.shape[:3]
    head_width, windows = width // heads, tokens // window_tokens
    out = torch.empty(batch, tokens, width, dtype=x.dtype, device=x.device)
    if isinstance(batch, int) and batch == 0:
        return out
    # Every program is one window and one head whatever the batch: its result cannot depend on the batch.
    launchable(window_attention_kernel)[(windows * batch, heads)](
        x.contiguous(), index, norm_weight.contiguous(), norm_bias.contiguous(), weight.contiguous(),
        bias.contiguous(), score_bias.contiguous(), out,
        tokens, width, windows, window_tokens, head_width, bias_windows,
        SCALE=head_width**-0.5, EPS=eps, PRECISION=product_precision(x.dtype),
        TOKENS=power_of_two(window_tokens, DOT), HEAD=power_of_two(head_width, DOT),
        BLOCK_K=_terms_at_once(width, x.dtype), BLOCK_S=64, num_warps=4,
    )  # fmt: skip
    return out


def _terms_at_once(width: int, dtype: torch.dtype) -> int:
    """More would spill float32's registers, or be beyond the shared memory of consumer GPUs."""
    if dtype == torch.float32:
        return 16
    return 64 if width % 64 == 0 else 32

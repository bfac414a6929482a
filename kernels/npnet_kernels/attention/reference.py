"""Window attention in plain PyTorch: what the kernel must compute, and what runs without Triton."""

from torch import Tensor
from torch.nn import functional

from npnet_kernels.rows.reference import gather_reference, layer_norm_reference


def window_attention_reference(
    x_BNC: Tensor,
    index: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    score_bias: Tensor,
    eps: float,
) -> Tensor:
    """`softmax(q k^T / sqrt(d) + bias) v` within each run of L rows of the gathered, normalised rows."""
    heads, window_tokens = score_bias.shape[1:3]
    x = layer_norm_reference(gather_reference(x_BNC, index), norm_weight, norm_bias, eps)
    qkv = functional.linear(x, weight.to(x.dtype), bias.to(x.dtype))
    # (B, windows, L, 3, heads, d) -> three of (B, windows, heads, L, d)
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unflatten(1, (-1, window_tokens)).permute(3, 0, 1, 4, 2, 5)
    score = q @ k.mT * q.shape[-1] ** -0.5 + score_bias
    return (score.softmax(-1) @ v).transpose(2, 3).flatten(3).flatten(1, 2).to(x_BNC.dtype)

"""The fused linear layer in plain PyTorch: what the kernel must compute, and what runs without Triton."""

from torch import Tensor
from torch.nn import functional

from npnet_kernels.precision import widen
from npnet_kernels.rows.reference import gather_reference, layer_norm_reference


def fused_linear_reference(
    x_BNC: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    index: Tensor | None,
    residual: Tensor | None,
    residual_index: Tensor | None,
    gelu: bool,
    eps: float,
) -> Tensor:
    """`[residual +] gelu([norm](gather(x)) W^T + b)`, in float32 to the end."""
    x = widen(x_BNC)
    if index is not None:
        x = gather_reference(x, index, weight.shape[1] // x.shape[-1])
    if norm_weight is not None and norm_bias is not None:
        x = layer_norm_reference(x, norm_weight, norm_bias, eps)
    x = functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    if gelu:
        x = functional.gelu(x)
    if residual is not None:
        x = x + widen(residual if residual_index is None else gather_reference(residual, residual_index))
    return x.to(x_BNC.dtype)

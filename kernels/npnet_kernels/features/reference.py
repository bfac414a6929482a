"""The residual map in plain PyTorch: what the kernel must compute, and what runs without Triton."""

from torch import Tensor

from npnet_kernels.rows.reference import gather_reference, layer_norm_reference


def residual_map_reference(
    x_BNC: Tensor,
    index: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    column_index: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """The 1x1 convolution of an NHWC map of features whose rows are read as channels, `(B, C, n, W)`."""
    side = weight.shape[1]
    features = layer_norm_reference(gather_reference(x_BNC, index), norm_weight, norm_bias, eps)
    rows = features.unflatten(1, (side, side)).index_select(3, column_index).flatten(2)
    weight, bias = weight.to(rows.dtype), bias.to(rows.dtype)
    return (weight @ rows).unflatten(2, (side, -1)) + bias[:, None, None]

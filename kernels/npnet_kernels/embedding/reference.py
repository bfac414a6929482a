"""The patch embedding in plain PyTorch: what the kernel must compute, and what runs without Triton."""

import torch
from torch import Tensor
from torch.nn import functional

from npnet_kernels.precision import widen
from npnet_kernels.rows.reference import layer_norm_reference


def embed_patches_reference(
    noise_BCHW: Tensor,
    scale_shift_B2C: Tensor,
    pixel_index: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    group_eps: float,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """`layernorm(W patch(X + groupnorm(X) * (1 + scale) + shift) + b)` in float32, cast to `dtype`."""
    noise = widen(noise_BCHW)
    scale, shift = scale_shift_B2C.to(noise.dtype)[..., None, None].chunk(2, dim=1)
    image = noise + functional.group_norm(noise, 1, eps=group_eps) * (1 + scale) + shift
    patch_pixels = weight.shape[1] // noise.shape[1]
    pixels = image.flatten(2).index_select(2, pixel_index)
    patches = pixels.unflatten(2, (-1, patch_pixels)).transpose(1, 2).flatten(2)
    rows = functional.linear(patches, weight.to(noise.dtype), bias.to(noise.dtype))
    return layer_norm_reference(rows, norm_weight, norm_bias, eps).to(dtype)

"""The launch of the patch embedding kernel. Imports Triton when called."""

import torch
from torch import Tensor

from npnet_kernels.backends import launchable
from npnet_kernels.rows.reference import product_precision
from npnet_kernels.statistics.launch import launch_statistics
from npnet_kernels.tiles import DOT, power_of_two


def launch_embed_patches(
    noise: Tensor,
    scale_shift: Tensor,
    pixel_index: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    group_eps: float,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """`(B, N, C')` of `dtype` from operands as `embed_patches` takes them."""
    from npnet_kernels.embedding.kernels import embed_kernel

    batch, channels, height, image_width = noise.shape
    width, terms = weight.shape
    patch_pixels = terms // channels
    patches = pixel_index.shape[0] // patch_pixels
    out = torch.empty(batch, patches, width, dtype=dtype, device=noise.device)
    if isinstance(batch, int) and batch == 0:
        return out
    noise = noise.contiguous()
    statistics = launch_statistics(noise)
    block_m = 32
    launchable(embed_kernel)[(-(-patches // block_m), batch)](
        noise, statistics.partial, scale_shift.contiguous(), pixel_index, weight.contiguous(),
        bias.contiguous(), norm_weight.contiguous(), norm_bias.contiguous(), out,
        channels, height * image_width, patches, patch_pixels, width, statistics.chunks,
        GROUP_EPS=group_eps, EPS=eps, CHUNK=statistics.chunk, CHUNKS=statistics.padded_chunks,
        PRECISION=product_precision(torch.float32), BLOCK_M=block_m,
        WIDTH=power_of_two(width, DOT), BLOCK_K=16, num_warps=4,
    )  # fmt: skip
    return out

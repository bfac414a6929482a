"""Exact scaling of a matrix to entries of order one, so that squares neither overflow nor vanish."""

import torch
from torch import Tensor

from npnet_kernels.backends import has_triton
from npnet_kernels.tiles import power_of_two

_CHUNK = 1024


def normalise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each matrix by a power of two near its largest entry, exactly.

    Args:
        matrix: `(..., R, C)` float32, on any device.

    Returns:
        The scaled matrix in float64, largest magnitude in [1/2, 1) except at the ends of float32's range, and
        the scale `(...)` in float64, 1 for a zero matrix. NaN and infinity pass through, to be caught later.
    """
    if matrix.is_cuda and has_triton():
        return normalise_by_kernels(matrix)
    wide = matrix.double()
    largest = wide.abs().amax((-2, -1))
    usable = torch.isfinite(largest) & (largest > 0)
    exponent = torch.frexp(torch.where(usable, largest, 0.5)).exponent.clamp(-120, 120)  # `ldexp` is float32
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    return wide / scale[..., None, None], scale


def normalise_by_kernels(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """As `normalise`, in two launches of Triton kernels; the results are the same bits."""
    from npnet_kernels.linalg import scaling_kernels as kernels

    matrix = matrix.contiguous()
    lead, size = matrix.shape[:-2], matrix.shape[-2] * matrix.shape[-1]
    batch, chunks = lead.numel(), -(-size // _CHUNK)
    largest = torch.empty(batch, chunks, dtype=torch.int32, device=matrix.device)
    wide = torch.empty(matrix.shape, dtype=torch.float64, device=matrix.device)
    scale = torch.empty(lead, dtype=torch.float64, device=matrix.device)
    grid = (chunks, batch)
    kernels.largest_kernel[grid](matrix, largest, size, BLOCK=_CHUNK)
    kernels.scale_kernel[grid](matrix, largest, wide, scale, size, BLOCK=_CHUNK, CHUNKS=power_of_two(chunks))
    return wide, scale

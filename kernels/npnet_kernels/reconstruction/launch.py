"""Launches of the reconstruction kernels: tile sizes, precision, strides. Imports Triton when called."""

from dataclasses import dataclass

import torch
from torch import Tensor

from npnet_kernels.backends import launchable
from npnet_kernels.reconstruction.grid import grid_side
from npnet_kernels.reconstruction.reference import GROUP_NORM_EPS

_SMALLEST_CHUNK, _LARGEST_CHUNK, _CHUNKS_WANTED = 1024, 8192, 256


@dataclass(frozen=True)
class Tiling:
    """Block sizes of `reconstruct_kernel`. `block_k` is common: tiling does not change the order of a sum."""

    block_h: int
    block_w: int
    block_k: int = 32
    num_warps: int = 4


def choose_tiling(batch: int) -> Tiling:
    """Small tiles while a batch leaves the device half empty: 64 programs an image at 128 x 128, else 16.

    A symbolic batch, as `torch.export` passes it, gets the large tiles: a comparison would pin its range.
    """
    return Tiling(32, 32) if isinstance(batch, int) and batch <= 4 else Tiling(64, 64)


def choose_precision(noise_dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: TF32's 2e-5 in the output is far below the 5e-4 of half precision."""
    return "tf32x3" if noise_dtype == torch.float32 else "tf32"


def launch_reconstruct(
    noise: Tensor,
    u: Tensor,
    f: Tensor,
    vh: Tensor,
    finish: tuple[Tensor, Tensor, float, float] | None,
) -> Tensor:
    """Spectral part in float32, or with `finish` = (scale_shift, residual, weights) golden noise."""
    from npnet_kernels.reconstruction.kernels import reconstruct_kernel

    batch, channels, height, width = noise.shape
    out = torch.empty(noise.shape, dtype=noise.dtype if finish else torch.float32, device=noise.device)
    if isinstance(batch, int) and batch == 0:
        return out
    if finish:
        scale_shift, residual, text_weight, residual_weight = finish
        scale_shift, residual = scale_shift.contiguous(), residual.contiguous()
        partial, chunk = _partial_statistics(noise)
    else:  # pointers that the kernel never follows
        scale_shift = residual = partial = noise
        chunk, text_weight, residual_weight = 1, 0.0, 0.0
    f = f.contiguous()
    chunks = partial.shape[-1] if finish else 1
    tiling = choose_tiling(batch)
    tiles = _cdiv(height, tiling.block_h) * _cdiv(width, tiling.block_w)
    launchable(reconstruct_kernel)[(tiles, channels, batch)](
        noise, u, f, vh, partial, scale_shift, residual, out,
        channels, grid_side(channels), height, width, f.shape[-1],
        *noise.stride(), *u.stride(), *vh.stride(),
        residual.shape[2], residual.shape[2] / height, text_weight, residual_weight, GROUP_NORM_EPS, chunks,
        FINISH=finish is not None, PRECISION=choose_precision(noise.dtype),
        CHUNK=chunk, CHUNKS=_power_of_two(chunks),
        BLOCK_H=tiling.block_h, BLOCK_W=tiling.block_w, BLOCK_K=tiling.block_k, num_warps=tiling.num_warps,
    )  # fmt: skip
    return out


def launch_combine(
    spectral: Tensor,
    noise: Tensor,
    scale_shift: Tensor,
    residual: Tensor,
    text_weight: float,
    residual_weight: float,
) -> Tensor:
    """Golden noise from a spectral part computed earlier."""
    from npnet_kernels.reconstruction.kernels import combine_kernel

    batch, channels, height, width = noise.shape
    out = torch.empty(noise.shape, dtype=noise.dtype, device=noise.device)
    if isinstance(batch, int) and batch == 0:
        return out
    partial, chunk = _partial_statistics(noise)
    chunks = partial.shape[-1]
    block_h, block_w = 8, 128  # bound by memory: long rows, 1,024 values a program
    tiles = _cdiv(height, block_h) * _cdiv(width, block_w)
    residual = residual.contiguous()
    launchable(combine_kernel)[(tiles, channels, batch)](
        spectral.contiguous(), noise, partial, scale_shift.contiguous(), residual, out,
        channels, height, width, *noise.stride(),
        residual.shape[2], residual.shape[2] / height, text_weight, residual_weight, GROUP_NORM_EPS, chunks,
        CHUNK=chunk, CHUNKS=_power_of_two(chunks), BLOCK_H=block_h, BLOCK_W=block_w,
    )  # fmt: skip
    return out


def _partial_statistics(noise: Tensor) -> tuple[Tensor, int]:
    """Mean and squared deviations by chunk, `(B, 2, chunks)` float32, and the size of a chunk."""
    from npnet_kernels.reconstruction.kernels import statistics_kernel

    batch, channels, height, width = noise.shape
    size = channels * height * width
    chunk = min(max(_power_of_two(_cdiv(size, _CHUNKS_WANTED)), _SMALLEST_CHUNK), _LARGEST_CHUNK)
    chunks = _cdiv(size, chunk)
    partial = torch.empty(batch, 2, chunks, dtype=torch.float32, device=noise.device)
    launchable(statistics_kernel)[(chunks, batch)](
        noise, partial, channels, height, width, *noise.stride(), chunks, BLOCK=chunk
    )
    return partial, chunk


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()

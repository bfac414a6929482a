"""Launches of the reconstruction kernels: tile sizes, precision, strides. Imports Triton when called."""

from dataclasses import dataclass

import torch
from torch import Tensor

from npnet_kernels.backends import launchable
from npnet_kernels.reconstruction.grid import grid_side
from npnet_kernels.reconstruction.reference import GROUP_NORM_EPS
from npnet_kernels.statistics.launch import Statistics, launch_statistics


@dataclass(frozen=True)
class Tiling:
    """Block sizes of `reconstruct_kernel`. `block_k` is common: tiling does not change the order of a sum."""

    block_h: int
    block_w: int
    block_k: int = 32
    num_warps: int = 4


def choose_tiling(batch: int) -> Tiling:
    """Small tiles while a batch leaves the device half empty: 64 programs an image at 128 x 128, else 16.

    No tile has 64 rows and more than two warps: Hopper would multiply those by another instruction, and the
    result of a latent would depend on its batch.

    A symbolic batch, as `torch.export` passes it, gets the large tiles: a comparison would pin its range.
    """
    return Tiling(32, 32) if isinstance(batch, int) and batch <= 4 else Tiling(32, 128)


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
        statistics = launch_statistics(noise)
    else:  # pointers that the kernel never follows
        scale_shift = residual = noise
        statistics, text_weight, residual_weight = Statistics(noise[:, :, :1], 1), 0.0, 0.0
    f = f.contiguous()
    tiling = choose_tiling(batch)
    tiles = _cdiv(height, tiling.block_h) * _cdiv(width, tiling.block_w)
    launchable(reconstruct_kernel)[(tiles, channels, batch)](
        noise, u, f, vh, statistics.partial, scale_shift, residual, out,
        channels, grid_side(channels), height, width, f.shape[-1],
        *noise.stride(), *u.stride(), *vh.stride(),
        residual.shape[2], residual.shape[2] / height, text_weight, residual_weight, statistics.chunks,
        EPS=GROUP_NORM_EPS, FINISH=finish is not None, PRECISION=choose_precision(noise.dtype),
        CHUNK=statistics.chunk, CHUNKS=statistics.padded_chunks,
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
    peak: Tensor | None = None,
) -> Tensor:
    """Golden noise from a spectral part computed earlier.

    `peak` (B,) int32 gets the bits of the largest magnitude of each latent.
    """
    from npnet_kernels.reconstruction.kernels import combine_kernel

    batch, channels, height, width = noise.shape
    out = torch.empty(noise.shape, dtype=noise.dtype, device=noise.device)
    if isinstance(batch, int) and batch == 0:
        return out
    statistics = launch_statistics(noise, peak)
    block_h, block_w = 8, 128  # bound by memory: long rows, 1,024 values a program
    tiles = _cdiv(height, block_h) * _cdiv(width, block_w)
    residual = residual.contiguous()
    launchable(combine_kernel)[(tiles, channels, batch)](
        spectral.contiguous(), noise, statistics.partial, scale_shift.contiguous(), residual, out,
        statistics.partial if peak is None else peak, channels, height, width, *noise.stride(),
        residual.shape[2], residual.shape[2] / height, text_weight, residual_weight, statistics.chunks,
        EPS=GROUP_NORM_EPS, PEAK=peak is not None, CHUNK=statistics.chunk, CHUNKS=statistics.padded_chunks,
        BLOCK_H=block_h, BLOCK_W=block_w,
    )  # fmt: skip
    return out


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)

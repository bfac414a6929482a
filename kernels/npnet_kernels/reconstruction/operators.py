"""Registration of the reconstruction with PyTorch. Importing this module registers `npnet::...`.

`triton_op` shows the launches to `torch.compile` and AOTInductor, which packages the compiled kernels.
"""

import torch
from torch import Tensor
from torch.library import triton_op

from npnet_kernels.reconstruction.launch import launch_combine, launch_reconstruct
from npnet_kernels.reconstruction.reference import (
    combine_reference,
    combine_with_peak_reference,
    spectral_reference,
)


@triton_op("npnet::spectral_correction", mutates_args={})
def _spectral_correction(noise: Tensor, u: Tensor, f: Tensor, vh: Tensor, backend: str) -> Tensor:
    if backend == "torch":
        return spectral_reference(noise, u, f, vh)
    return launch_reconstruct(noise, u, f, vh, None)


@triton_op("npnet::combine", mutates_args={})
def _combine(
    spectral: Tensor,
    noise: Tensor,
    scale_shift: Tensor,
    residual: Tensor,
    text_weight: float,
    residual_weight: float,
    backend: str,
) -> Tensor:
    if backend == "torch":
        return combine_reference(spectral, noise, scale_shift, residual, text_weight, residual_weight)
    return launch_combine(spectral, noise, scale_shift, residual, text_weight, residual_weight)


@triton_op("npnet::combine_with_peak", mutates_args={})
def _combine_with_peak(
    spectral: Tensor,
    noise: Tensor,
    scale_shift: Tensor,
    residual: Tensor,
    text_weight: float,
    residual_weight: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    weights = text_weight, residual_weight
    if backend == "torch":
        return combine_with_peak_reference(spectral, noise, scale_shift, residual, *weights)
    bits = torch.empty(noise.shape[:1], dtype=torch.int32, device=noise.device)
    golden = launch_combine(spectral, noise, scale_shift, residual, *weights, bits)
    return golden, bits.view(torch.float32)


@triton_op("npnet::reconstruct", mutates_args={})
def _reconstruct(
    noise: Tensor,
    u: Tensor,
    f: Tensor,
    vh: Tensor,
    scale_shift: Tensor,
    residual: Tensor,
    text_weight: float,
    residual_weight: float,
    backend: str,
) -> Tensor:
    if backend == "torch":
        spectral = spectral_reference(noise, u, f, vh)
        return combine_reference(spectral, noise, scale_shift, residual, text_weight, residual_weight)
    return launch_reconstruct(noise, u, f, vh, (scale_shift, residual, text_weight, residual_weight))

"""The reconstruction in plain PyTorch: what the kernels must compute, and what runs without Triton.

Half precision is widened to float32; float64 inputs are computed in float64, which tests and benchmarks use.

Shape legend: B batch, C = g * g channels, H x W latent, k = min(g H, g W), n rows of the compact residual.
"""

from torch import Tensor
from torch.nn import functional

from npnet_kernels.precision import widen
from npnet_kernels.reconstruction.grid import latent_to_matrix, matrix_to_latent

GROUP_NORM_EPS = 1e-6


def spectral_reference(noise_BCHW: Tensor, u: Tensor, f_Bk: Tensor, vh: Tensor) -> Tensor:
    """`fold(M + (U * f) Vh)` in float32, `M` the grid of channels."""
    corrected = latent_to_matrix(widen(noise_BCHW)) + (u * f_Bk.unsqueeze(1)) @ vh
    return matrix_to_latent(corrected, noise_BCHW.shape[1])


def combine_reference(
    spectral_BCHW: Tensor,
    noise_BCHW: Tensor,
    scale_shift_B2C: Tensor,
    residual_BCnW: Tensor,
    text_weight: float | Tensor,
    residual_weight: float | Tensor,
) -> Tensor:
    """`S + a * (groupnorm(X) * (1 + scale) + shift) + beta * R` in float32, cast to the noise's dtype."""
    widened = _combine(
        spectral_BCHW, noise_BCHW, scale_shift_B2C, residual_BCnW, text_weight, residual_weight
    )
    return widened.to(noise_BCHW.dtype)


def combine_with_peak_reference(
    spectral_BCHW: Tensor,
    noise_BCHW: Tensor,
    scale_shift_B2C: Tensor,
    residual_BCnW: Tensor,
    text_weight: float | Tensor,
    residual_weight: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """`combine_reference`, and (B,) the largest magnitude before the cast; NaN is the largest of all."""
    widened = _combine(
        spectral_BCHW, noise_BCHW, scale_shift_B2C, residual_BCnW, text_weight, residual_weight
    )
    return widened.to(noise_BCHW.dtype), widened.abs().amax((1, 2, 3))


def _combine(
    spectral_BCHW: Tensor,
    noise_BCHW: Tensor,
    scale_shift_B2C: Tensor,
    residual_BCnW: Tensor,
    text_weight: float | Tensor,
    residual_weight: float | Tensor,
) -> Tensor:
    noise = widen(noise_BCHW)
    scale, shift = widen(scale_shift_B2C)[..., None, None].chunk(2, dim=1)
    text = functional.group_norm(noise, 1, eps=GROUP_NORM_EPS) * (1 + scale) + shift
    residual = functional.interpolate(widen(residual_BCnW), size=noise.shape[-2:], mode="nearest")
    return spectral_BCHW + text_weight * text + residual_weight * residual

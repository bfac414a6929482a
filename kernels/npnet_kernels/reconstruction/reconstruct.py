"""The public functions of the reconstruction: in one pass, or the spectral part first, the rest later."""

import torch
from torch import Tensor

from npnet_kernels.backends import Backend, backend_for, device_guard, full_precision, needs_operator
from npnet_kernels.checks import check_dtype, check_operand
from npnet_kernels.errors import KernelInputError
from npnet_kernels.reconstruction.grid import grid_side
from npnet_kernels.reconstruction.reference import (
    combine_reference,
    combine_with_peak_reference,
    spectral_reference,
)


def spectral_correction(
    noise: Tensor, u: Tensor, f: Tensor, vh: Tensor, *, backend: Backend = "auto"
) -> Tensor:
    """Spectral part `fold(M + (U * f) Vh)`, which equals `fold(U diag(s + f) Vh)`.

    Args:
        noise: `(B, C, H, W)` float16, bfloat16 or float32, C = g * g; `M` is its grid of channels, `(B, gH,
            gW)`.
        u: left singular vectors of `M`, `(B, gH, k)` float32, any strides.
        f: change of the singular values, `(B, k)` float32.
        vh: right singular vectors, `(B, k, gW)` float32, any strides.
        backend: `"torch"` for the plain reference, `"triton"` for the kernel.

    Returns:
        `(B, C, H, W)` float32.

    Raises:
        KernelInputError: shapes, dtypes or devices do not fit together.
        BackendUnavailableError: `backend="triton"` cannot run here.
    """
    _check_noise(noise)
    _check_factors(noise, u, f, vh)
    chosen = backend_for(noise, backend)
    if not needs_operator(chosen):
        with full_precision(noise):
            return spectral_reference(noise, u, f, vh)
    _register()
    with device_guard(noise):
        return torch.ops.npnet.spectral_correction(noise, u, f, vh, chosen)


def combine(
    spectral: Tensor,
    noise: Tensor,
    scale_shift: Tensor,
    residual: Tensor,
    *,
    text_weight: float,
    residual_weight: float,
    backend: Backend = "auto",
) -> Tensor:
    """Golden noise `S + a * (groupnorm(X) * (1 + scale) + shift) + beta * expand(R)`.

    Args:
        spectral: `S` from `spectral_correction`, `(B, C, H, W)` float32.
        noise: `X`, `(B, C, H, W)` float16, bfloat16 or float32. The group norm has one group and no weights.
        scale_shift: `(B, 2C)`, C scales then C shifts, any of the three dtypes.
        residual: compact `R`, `(B, C, n, W)`; row y of the full map is row floor(n * y / H), as nearest
            interpolation computes it.
        text_weight: `a`.
        residual_weight: `beta`.
        backend: `"torch"` for the plain reference, `"triton"` for the kernel.

    Returns:
        `(B, C, H, W)` in the noise's dtype; all arithmetic is float32.

    Raises:
        KernelInputError: shapes, dtypes or devices do not fit together.
        BackendUnavailableError: `backend="triton"` cannot run here.
    """
    _check_noise(noise)
    check_operand("spectral", spectral, tuple(noise.shape), noise, (torch.float32,))
    _check_branches(noise, scale_shift, residual)
    chosen = backend_for(noise, backend)
    arguments = (spectral, noise, scale_shift, residual, float(text_weight), float(residual_weight))
    if not needs_operator(chosen):
        return combine_reference(*arguments)
    _register()
    with device_guard(noise):
        return torch.ops.npnet.combine(*arguments, chosen)


def combine_with_peak(
    spectral: Tensor,
    noise: Tensor,
    scale_shift: Tensor,
    residual: Tensor,
    *,
    text_weight: float,
    residual_weight: float,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """`combine`, and how large its values are: what tells in one number whether all are finite.

    Arguments and errors are those of `combine`.

    Returns:
        Golden noise `(B, C, H, W)` in the noise's dtype, and `(B,)` float32: the largest magnitude of each
        latent before it was rounded to that dtype, NaN if one of its values is NaN.
    """
    _check_noise(noise)
    check_operand("spectral", spectral, tuple(noise.shape), noise, (torch.float32,))
    _check_branches(noise, scale_shift, residual)
    chosen = backend_for(noise, backend)
    arguments = (spectral, noise, scale_shift, residual, float(text_weight), float(residual_weight))
    if not needs_operator(chosen):
        return combine_with_peak_reference(*arguments)
    _register()
    with device_guard(noise):
        return torch.ops.npnet.combine_with_peak(*arguments, chosen)


def reconstruct(
    noise: Tensor,
    u: Tensor,
    f: Tensor,
    vh: Tensor,
    scale_shift: Tensor,
    residual: Tensor,
    *,
    text_weight: float,
    residual_weight: float,
    backend: Backend = "auto",
) -> Tensor:
    """`combine` of `spectral_correction` in one pass: the spectral part never leaves the registers.

    Arguments, result and errors are those of the two functions.
    """
    _check_noise(noise)
    _check_factors(noise, u, f, vh)
    _check_branches(noise, scale_shift, residual)
    chosen = backend_for(noise, backend)
    branches = (scale_shift, residual, float(text_weight), float(residual_weight))
    if not needs_operator(chosen):
        with full_precision(noise):
            return combine_reference(spectral_reference(noise, u, f, vh), noise, *branches)
    _register()
    with device_guard(noise):
        return torch.ops.npnet.reconstruct(noise, u, f, vh, *branches, chosen)


def _register() -> None:
    import npnet_kernels.reconstruction.operators  # noqa: F401


def _check_noise(noise: Tensor) -> None:
    if noise.dim() != 4 or 0 in noise.shape[1:]:
        raise KernelInputError(f"noise: expected shape (B, C, H, W); given {tuple(noise.shape)}")
    check_dtype("noise", noise)
    grid_side(noise.shape[1])


def _check_factors(noise: Tensor, u: Tensor, f: Tensor, vh: Tensor) -> None:
    batch, channels, height, width = noise.shape
    g = grid_side(channels)
    rank = min(g * height, g * width)
    check_operand("u", u, (batch, g * height, rank), noise, (torch.float32,))
    check_operand("f", f, (batch, rank), noise, (torch.float32,))
    check_operand("vh", vh, (batch, rank, g * width), noise, (torch.float32,))


def _check_branches(noise: Tensor, scale_shift: Tensor, residual: Tensor) -> None:
    batch, channels, height, width = noise.shape
    check_operand("scale_shift", scale_shift, (batch, 2 * channels), noise)
    rows = residual.shape[2] if residual.dim() == 4 else 7
    if not 1 <= rows <= height:
        raise KernelInputError(f"residual: expected between 1 and {height} rows; given {rows}")
    check_operand("residual", residual, (batch, channels, rows, width), noise)

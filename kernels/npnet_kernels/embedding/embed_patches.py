"""The public `embed_patches`."""

import torch
from torch import Tensor

from npnet_kernels.backends import Backend, backend_for, device_guard, full_precision, needs_operator
from npnet_kernels.checks import FLOATING, check_dtype, check_index, check_operand
from npnet_kernels.embedding.reference import embed_patches_reference
from npnet_kernels.errors import KernelInputError

MOST_WIDTH = 256  # columns that the registers of a program hold beside one another


def embed_patches(
    noise: Tensor,
    scale_shift: Tensor,
    pixel_index: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: tuple[Tensor, Tensor],
    *,
    dtype: torch.dtype,
    group_eps: float = 1e-6,
    eps: float = 1e-5,
    backend: Backend = "auto",
) -> Tensor:
    """Rows of the patches of `X + groupnorm(X) * (1 + scale) + shift`, resized to nearest, and normalised.

    What stands between noise and the first block of NPNet's residual branch (Zhou et al., arXiv 2411.09502);
    its 1x1 convolution is expected folded into `weight`. Computed in float32.

    Args:
        noise: `(B, C, H, W)` float16, bfloat16 or float32, any strides.
        scale_shift: `(B, 2C)` float32, C scales then C shifts.
        pixel_index: `(N * p,)` int32, the pixel (of H * W) of each of the `p` places of each patch.
        weight: `(C', C * p)` float32.
        bias: `(C',)` float32.
        norm: weight and bias `(C',)` of the layer norm behind. C' is at most 256 for the kernel.
        dtype: of the result, one of the three.
        group_eps: of the group norm over all of a latent.
        eps: of the layer norm.
        backend: `"torch"` for the plain reference, `"triton"` for the kernel.

    Returns:
        `(B, N, C')` of `dtype`.

    Raises:
        KernelInputError: shapes, dtypes or devices do not fit together.
        BackendUnavailableError: `backend="triton"` cannot run here.
    """
    _check(noise, scale_shift, pixel_index, weight, bias, norm, dtype)
    chosen = backend_for(noise, backend)
    arguments = (noise, scale_shift, pixel_index, weight, bias, *norm, group_eps, eps, dtype)
    if not needs_operator(chosen):
        with full_precision(noise):
            return embed_patches_reference(*arguments)
    if chosen == "triton" and weight.shape[0] > MOST_WIDTH:
        raise KernelInputError(
            f"the kernel takes up to {MOST_WIDTH} columns; given {weight.shape[0]}. Use backend='torch'"
        )
    import npnet_kernels.embedding.operators  # noqa: F401

    with device_guard(noise):
        return torch.ops.npnet.embed_patches(*arguments, chosen)


def _check(
    noise: Tensor,
    scale_shift: Tensor,
    pixel_index: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: tuple[Tensor, Tensor],
    dtype: torch.dtype,
) -> None:
    if noise.dim() != 4 or 0 in noise.shape[1:]:
        raise KernelInputError(f"noise: expected shape (B, C, H, W); given {tuple(noise.shape)}")
    check_dtype("noise", noise)
    batch, channels = noise.shape[:2]
    check_operand("scale_shift", scale_shift, (batch, 2 * channels), noise, (torch.float32,))
    width, terms = weight.shape if weight.dim() == 2 else (0, 0)
    if not width or terms % channels or not terms:
        raise KernelInputError(
            f"weight: expected shape (C', {channels} * pixels of a patch); given {tuple(weight.shape)}"
        )
    check_operand("weight", weight, (width, terms), noise, (torch.float32,))
    check_operand("bias", bias, (width,), noise, (torch.float32,))
    for name, tensor in zip(("norm weight", "norm bias"), norm, strict=True):
        check_operand(name, tensor, (width,), noise)
    if pixel_index.dim() != 1 or pixel_index.shape[0] % (terms // channels):
        raise KernelInputError(
            f"pixel_index: expected {terms // channels} pixels for each patch; "
            f"given {tuple(pixel_index.shape)}"
        )
    check_index("pixel_index", pixel_index, tuple(pixel_index.shape), noise)
    if dtype not in FLOATING:
        raise KernelInputError(f"dtype: expected one of {', '.join(map(str, FLOATING))}; given {dtype}")

"""The sign rule that makes singular vectors reproducible from one solver and device to the next.

A pair `(u_i, v_i)` is defined up to a common sign. The network reads the vectors through ReLU layers, which
are not odd, so the sign reaches the image. The rule: `<r, v_i> >= 0` for one fixed Gaussian vector `r`. A
random direction is nearly orthogonal to a given `v_i` with small probability, so rounding rarely turns a
sign, whereas "largest entry positive" has near-ties in every draw.
"""

import random
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

from npnet_kernels.backends import device_guard, has_triton

SIGN_RULE = "canonical-v1"
"""Name of the rule, to be recorded beside anything computed with it. A change of `r` changes the name."""

_PAIRS = 8  # a program: 32 programs for an image of SDXL


def canonical_signs(u: Tensor, vh: Tensor) -> tuple[Tensor, Tensor]:
    """Flip singular pairs so that every right vector has a non-negative product with a fixed vector `r`.

    Args:
        u: left vectors in columns, `(..., R, k)`.
        vh: right vectors in rows, `(..., k, C)`, on the device of `u`.

    Returns:
        `(u, vh)` with the flips applied, same shapes and dtypes. A product of exactly zero, or NaN, flips
        nothing.
    """
    return torch.ops.npnet.canonical_signs(u, vh)


@torch.library.custom_op("npnet::canonical_signs", mutates_args=())
def _canonical_signs(u: Tensor, vh: Tensor) -> tuple[Tensor, Tensor]:
    r = _reference_vector(vh.shape[-1], vh.device)
    if u.is_cuda and has_triton():
        with device_guard(u):
            return flip_by_kernel(u, vh, r)
    # A sum instead of a matrix product: no TF32 setting reaches it, and it is the same for every batch size.
    products = (vh.double() * r).sum(-1)
    flip = 1 - 2 * (products < 0).to(u.dtype)
    return (u * flip.unsqueeze(-2)).contiguous(), (vh * flip.unsqueeze(-1).to(vh.dtype)).contiguous()


def flip_by_kernel(u: Tensor, vh: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """The rule as one Triton kernel; `u` and `vh` of any strides, the results contiguous."""
    from npnet_kernels.linalg.sign_kernels import sign_kernel

    u, vh = u.contiguous(), vh.contiguous()
    (rows, k), columns = u.shape[-2:], vh.shape[-1]
    u_out, vh_out = torch.empty_like(u), torch.empty_like(vh)
    batch = u.shape[:-2].numel()
    if u.numel() and vh.numel():
        grid = (-(-k // _PAIRS), batch)
        sign_kernel[grid](u, vh, r, u_out, vh_out, rows, columns, k, BLOCK=_PAIRS, STEP=64)
    return u_out, vh_out


@_canonical_signs.register_fake
def _(u: Tensor, vh: Tensor) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), vh.new_empty(vh.shape)


def reference_draws(n: int) -> list[float]:
    """The first `n` numbers of the rule's Gaussian stream.

    They come from the standard library alone, because Python guarantees the stream of `Random(0).random()`
    for all versions to come, and no array library does.
    """
    generator, normal = random.Random(0), NormalDist()
    return [normal.inv_cdf(generator.random()) for _ in range(n)]


@lru_cache(maxsize=32)
def _reference_vector(n: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a cached inference tensor would break callers outside inference mode
        return torch.tensor(reference_draws(n), dtype=torch.float64, device="cpu").to(device)

"""A latent's channels as a square grid of blocks in a matrix: `(b, (a c), h, w) <-> (b, (a h), (c w))`."""

from math import isqrt

from torch import Tensor

from npnet_kernels.errors import KernelInputError


def grid_side(channels: int) -> int:
    """Side `g` of the grid of `channels = g * g` blocks.

    Raises:
        KernelInputError: `channels` is not a square number.
    """
    side = isqrt(channels)
    if side * side != channels or side == 0:
        raise KernelInputError(f"channels: expected a square number (4, 16, ...); given {channels}")
    return side


def latent_to_matrix(latent: Tensor) -> Tensor:
    """Lay channels out as a grid: `(B, g*g, H, W)` to `(B, g*H, g*W)`, contiguous, any dtype.

    Raises:
        KernelInputError: the number of channels is not a square number.
    """
    batch, channels, height, width = latent.shape
    g = grid_side(channels)
    blocks = latent.reshape(batch, g, g, height, width).transpose(2, 3)
    return blocks.reshape(batch, g * height, g * width)


def matrix_to_latent(matrix: Tensor, channels: int) -> Tensor:
    """The inverse of `latent_to_matrix`: `(B, g*H, g*W)` to `(B, channels, H, W)`.

    Raises:
        KernelInputError: `channels` is not a square number, or its root does not divide the sides.
    """
    batch, rows, columns = matrix.shape
    g = grid_side(channels)
    if rows % g or columns % g:
        raise KernelInputError(f"matrix: expected sides divisible by {g}; given {rows} x {columns}")
    blocks = matrix.reshape(batch, g, rows // g, g, columns // g).transpose(2, 3)
    return blocks.reshape(batch, channels, rows // g, columns // g)

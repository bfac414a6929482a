"""Golden noise of another size than the network was trained for: `resolution="transfer"`.

Released weights know 128 x 128 latents only. Resizing white noise to that size and back spoils it: nearest
neighbours repeat, bilinear weights take away a third of its standard deviation. What is done here instead
keeps white noise white, exactly. Along each axis of N places there is a matrix Q of n = 128 places:

* N > n: row i of Q averages the block of places that cell i covers, in parts where a cell's border falls
  within a place; then Q becomes the closest matrix with orthonormal rows (its polar factor). Where n
  divides N this is the block average, times the root of the block's length. Q of white noise is white.
* N < n: the same with the two exchanged. Q^T spreads the noise over the larger plane, of which it fills the
  subspace of block averages; the rest is filled with fixed white noise z: Q^T x + (I - Q^T Q) z.

Golden noise is computed at 128 x 128, and its *change* returns through the transpose:

    result = x + Q^T (golden(Q x) - Q x)

so that what the network sees of the result is golden noise, Q result = golden(Q x), and all else of the
native noise, down to its last bit where nothing changes, stays. If golden noise has unit variance, so has
the result. That the images gain as much as at 128 x 128 is not known: no network was trained for it.

A network of any size sees all of the noise, whose sides are brought to multiples of what its levels divide by
(`any_size.pad`), and whose change is cut again: Q is the identity there.

Shape suffixes as in `network.py`; n: size of the network's plane, N: of the native one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from npnet_runtime.errors import InputError
from npnet_runtime.networks.any_size import pad
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.registry import NetworkConfig

ResolutionPolicy = Literal["error", "transfer"]
FILL_SEED = 0
SMALLEST = 4
"""Of the network's sides, the part that is least. What golden noise adds to all of a plane, its mean, adds up
over the places that one of the smaller plane stands for: to a noise of 1 x 1 it gives a deviation of 27."""


def check_resolution_policy(policy: str) -> None:
    """Check the name of a policy.

    Raises:
        InputError: there is none of that name.
    """
    if policy not in get_args(ResolutionPolicy):
        raise InputError(
            f"resolution: expected one of {', '.join(get_args(ResolutionPolicy))}, given {policy!r}"
        )


def smallest_size(config: NetworkConfig) -> tuple[int, ...]:
    """H and W of the smallest noise that has golden noise by `"transfer"`."""
    return tuple(-(-side // SMALLEST) for side in config.latent_shape[1:])


def check_transferable(size: tuple[int, ...], config: NetworkConfig) -> None:
    """Check that noise of a size has golden noise by `"transfer"`.

    Args:
        size: H and W of the noise.
        config: shapes of the network.

    Raises:
        InputError: too small.
    """
    least = smallest_size(config)
    if any(side < smallest for side, smallest in zip(size, least, strict=True)):
        raise InputError(
            f"noise: expected {least[0]} x {least[1]} or more, a quarter of the network's own size, "
            f'given {size[0]} x {size[1]}: what resolution="transfer" makes of less is no noise any more; '
            "make a larger image"
        )


def to_network_size(noise: Tensor, config: NetworkConfig) -> Tensor:
    """White noise of the network's size that is made from white noise of any size.

    Args:
        noise: (B, C, H, W) float32.
        config: shapes of the network.

    Returns:
        (B, *config.latent_shape), white and of unit variance if the noise is; the noise itself where
        the sizes agree.
    """
    if isinstance(config, AnySizeConfig):
        return pad(noise, config.stride)
    for axis, n in ((2, config.latent_height), (3, config.latent_width)):
        size = noise.shape[axis]
        if size > n:
            noise = _along(noise, axis, _averages(n, size))
        elif size < n:
            q = _averages(size, n)
            fill = _fill(config, axis, noise)
            noise = _along(noise, axis, q.T) + fill - _along(_along(fill, axis, q), axis, q.T)
    return noise


def network_size(size: tuple[int, ...], config: NetworkConfig) -> tuple[int, ...]:
    """H and W of what the network sees of noise of a size."""
    if isinstance(config, AnySizeConfig):
        return config.padded(*size)
    return config.latent_shape[1:]


def to_native_size(change: Tensor, height: int, width: int, config: NetworkConfig) -> Tensor:
    """A change of the network's noise as a change of the native noise: the transpose of the way there.

    Args:
        change: (B, C, h, w) float32, of the network's size.
        height: native H.
        width: native W.
        config: shapes of the network.

    Returns:
        (B, C, H, W).
    """
    if isinstance(config, AnySizeConfig):
        return change[:, :, :height, :width]
    for axis, size in ((2, height), (3, width)):
        n = change.shape[axis]
        if size > n:
            change = _along(change, axis, _averages(n, size).T)
        elif size < n:
            change = _along(change, axis, _averages(size, n))
    return change


def _along(tensor: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """The matrix applied to one axis."""
    matrix = matrix.to(tensor.device)
    return matrix @ tensor if axis == 2 else tensor @ matrix.T


@lru_cache(maxsize=64)
def _averages(cells: int, places: int) -> Tensor:
    """Q, (cells, places) float32 with orthonormal rows, on the CPU; cells < places."""
    edges = torch.arange(cells + 1, dtype=torch.float64, device="cpu") * places / cells
    place = torch.arange(places, dtype=torch.float64, device="cpu")
    lower, upper = edges[:-1, None], edges[1:, None]
    covered = torch.minimum(upper, place + 1) - torch.maximum(lower, place)
    u, _, vh = torch.linalg.svd(covered.clamp(min=0), full_matrices=False)
    return (u @ vh).float()


def _fill(config: NetworkConfig, axis: int, noise: Tensor) -> Tensor:
    """Fixed white noise for what a smaller plane cannot say; nobody's generator is touched."""
    shape = [1, *noise.shape[1:]]
    shape[axis] = config.latent_shape[axis - 1]
    generator = torch.Generator("cpu").manual_seed(FILL_SEED + axis)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(noise.device)

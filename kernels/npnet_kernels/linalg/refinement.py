"""The tail every product-based solver shares: approximate right vectors in, certified factors out.

Its products are in float64. Double precision is what makes the factors better than LAPACK's float32 ones
whatever produced the first guess, and no TF32 setting of the caller reaches it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from npnet_kernels.backends import has_triton
from npnet_kernels.linalg.batching import one_by_one
from npnet_kernels.linalg.tail import Entrywise, EntrywiseReference, Finished

TOLERANCE = 1e-6
"""Factors are certified when `residual` does not exceed this, ten times the rounding of float32."""


class Refined(NamedTuple):
    """What `refine` leaves, float64: `x` = (U, V, M V) (3, ..., n, n), `s` (..., n), and what certifies them.

    Values are in descending order but for those nearly equal, and the smallest may be negative: `finish` puts
    that right. `worst` and `settled` are parts of the residual, see `Entrywise`.
    """

    x: Tensor
    s: Tensor
    worst: Tensor
    settled: Tensor


def refine(matrix: Tensor, v: Tensor, *, steps: int = 2, entrywise: Entrywise | None = None) -> Refined:
    """Turn approximate right singular vectors of a square matrix into accurate factors.

    Sort, `U = M V / s`, weighted orthogonalisation, then steps of Ogita and Aishima, "Iterative refinement
    for singular value decomposition based on matrix multiplication" (J. Comput. Appl. Math. 369, 2020,
    Algorithm 1). U, V and M V lie one after the other, so that a step is three products: the Gram matrices,
    `U^T M V`, and the change of all three. The certificate multiplies M and V anew.

    Args:
        matrix: `(..., n, n)` float64, largest entry of order one.
        v: `(..., n, n)` float64, vectors in columns, any order, wrong by at most a few per cent.
        steps: at least 1. Each squares the error: 5e-4 becomes 2e-7, then 3e-13.
        entrywise: what happens between the products; None for `entrywise_for(matrix)`.

    Returns:
        `Refined`; see `finish` for the residual.
    """
    between = entrywise or entrywise_for(matrix)
    x, s = between.left_vectors(matrix @ v, v)
    u = x[0] @ between.weighted_change(x[0].mT @ x[0], s)
    # One pass leaves 6 % in the last left vector when s_n is 2e-6 of s_1 (1 draw in 700).
    _multiply(u, between.weighted_change(u.mT @ u, s), out=x[0])
    for _ in range(steps):
        change, s, settled = between.rotations(x[0].mT @ x[2], x[:2].mT @ x[:2])
        x = x @ change
    _multiply(matrix, x[1], out=x[2])
    worst = between.worst_entry(x[:2].mT @ x[:2], x, s)
    return Refined(x, s, worst, settled)


def finish(
    refined: Refined,
    scale: Tensor | None = None,
    *,
    poison: float | None = None,
    entrywise: Entrywise | None = None,
) -> Finished:
    """Make the factors what `svd` returns: float32, values positive, descending, and times `scale`.

    Args:
        refined: from `refine`.
        scale: `(...)` float64; None for 1.
        poison: overwrite the factors of matrices whose residual is not at most this with NaN.
        entrywise: as for `refine`.

    Returns:
        `Finished`. `residual` is the largest entry of `I - U^T U`, `I - V^T V` and `(M V - U diag(s)) / s_1`.
        Where it exceeds `TOLERANCE` the factors are meaningless; it is infinite where they hold NaN, or
        where a pair of distinct values was too far from settled, which can leave next to no residual.
    """
    between = entrywise or entrywise_for(refined.x)
    if scale is None:
        scale = torch.ones(refined.s.shape[:-1], dtype=refined.s.dtype, device=refined.s.device)
    return between.finish(refined.x, refined.s, refined.worst, refined.settled, scale, poison)


def refine_one_by_one(solve: Callable[[Tensor], Refined], batch: Tensor) -> Refined:
    """`solve` applied to every matrix of a batch (B, n, n) on the CPU, see `one_by_one`."""
    x, s, worst, settled = one_by_one(solve, batch)
    return Refined(x.transpose(0, 1), s, worst, settled)


def entrywise_for(matrix: Tensor) -> Entrywise:
    """One kernel a step on CUDA, where the reference's many small ones would cost more than the products."""
    if matrix.is_cuda and has_triton():
        from npnet_kernels.linalg.tail_launch import EntrywiseKernels

        return EntrywiseKernels()
    return EntrywiseReference()


def _multiply(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """`out = a @ b` without a copy; `out` must not overlap `a` or `b`."""
    (torch.mm if a.dim() == 2 else torch.bmm)(a, b, out=out)

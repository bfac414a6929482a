"""The tail every product-based solver shares: approximate right vectors in, certified factors out.

Its products are in float64. Double precision is what makes the factors better than LAPACK's float32 ones
whatever produced the first guess, and no TF32 setting of the caller reaches it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from npnet_kernels.backends import has_triton
from npnet_kernels.linalg.rotations import Entrywise, EntrywiseReference

TOLERANCE = 1e-6
"""Factors are certified when `Refined.residual` does not exceed this, ten times the rounding of float32."""

_ORTHOGONALISATIONS = 2  # one leaves 6 % in the last left vector when s_n is 2e-6 of s_1 (1 draw in 700)


class Refined(NamedTuple):
    """Float64 factors `u` (..., n, n), `s` (..., n) descending, `v` (..., n, n), and `residual` (...)."""

    u: Tensor
    s: Tensor
    v: Tensor
    residual: Tensor


def refine(matrix: Tensor, v: Tensor, *, steps: int = 2, entrywise: Entrywise | None = None) -> Refined:
    """Turn approximate right singular vectors of a square matrix into accurate factors.

    Sort, `U = M V / s`, weighted orthogonalisation, then steps of Ogita and Aishima, "Iterative refinement
    for singular value decomposition based on matrix multiplication" (J. Comput. Appl. Math. 369, 2020,
    Algorithm 1).

    Args:
        matrix: `(..., n, n)` float64, largest entry of order one.
        v: `(..., n, n)` float64, vectors in columns, any order, wrong by at most a few per cent.
        steps: at least 1. Each squares the error: 5e-4 becomes 2e-7, then 3e-13.
        entrywise: what happens between the products; None for `entrywise_for(matrix)`.

    Returns:
        `Refined`. `residual` is the largest entry of `I - U^T U`, `I - V^T V` and `(M V - U diag(s)) / s_1`.
        Where it exceeds `TOLERANCE` the factors are meaningless; it is infinite where they hold NaN, or
        where a pair of distinct values was too far from settled, which can leave next to no residual.
    """
    between = entrywise or entrywise_for(matrix)
    u, s, v = _left_vectors(matrix, v)
    for _ in range(_ORTHOGONALISATIONS):
        u = _add_product(u, between.weighted_defect(u.mT @ u, s))
    for _ in range(steps):
        f, g, s, settled = between.rotations(u.mT @ (matrix @ v), u.mT @ u, v.mT @ v)
        u, v = _add_product(u, f), _add_product(v, g)
    u = torch.where(s.unsqueeze(-2) < 0, -u, u)  # the smallest value may have been refined through zero
    s, order = s.abs().sort(dim=-1, descending=True)
    u, v = _permute_columns(u, order), _permute_columns(v, order)
    residual = between.worst_entry(u.mT @ u, v.mT @ v, matrix @ v, u, s)
    return Refined(u, s, v, torch.where(settled, residual, torch.inf))


def entrywise_for(matrix: Tensor) -> Entrywise:
    """One kernel a step on CUDA, where the reference's many small ones would cost more than the products."""
    if matrix.is_cuda and has_triton():
        from npnet_kernels.linalg.rotation_launch import EntrywiseKernels

        return EntrywiseKernels()
    return EntrywiseReference()


def _left_vectors(matrix: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b = matrix @ v
    s, order = torch.linalg.vector_norm(b, dim=-2).sort(dim=-1, descending=True)
    b, v = _permute_columns(b, order), _permute_columns(v, order)
    return b / torch.where(s == 0, 1, s).unsqueeze(-2), s, v


def _add_product(x: Tensor, change: Tensor) -> Tensor:
    """`x + x @ change`, in one launch for a batch."""
    return torch.baddbmm(x, x, change) if x.dim() == 3 else torch.addmm(x, x, change)


def _permute_columns(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(-1, order.unsqueeze(-2).expand(x.shape))

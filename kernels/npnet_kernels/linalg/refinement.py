"""The tail every product-based solver shares: approximate right vectors in, certified factors out.

All of it is matrix products in float64. Double precision is what makes the factors better than LAPACK's
float32 ones whatever produced the first guess, and no TF32 setting of the caller reaches it. Legend: `b`
stands for `M V`, `R = I - U^T U`, `S = I - V^T V`, `T = U^T M V`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""Factors are certified when no residual (see `residual`) exceeds this, ten times the rounding of float32."""

_ORTHOGONALISATIONS = 2  # one leaves 6 % in the last left vector when s_n is 2e-6 of s_1 (1 draw in 700)
_CLUSTER = 1e-6  # gaps below this part of s_1 cannot be told from the rounding of a float32 matrix
_LARGEST_ANGLE = 0.15  # beyond it the linearised rotation is not to be trusted


class Refined(NamedTuple):
    """Float64 factors `u` (..., n, n), `s` (..., n) descending, `v` (..., n, n), and `residual` (...)."""

    u: Tensor
    s: Tensor
    v: Tensor
    residual: Tensor


def refine(matrix: Tensor, v: Tensor, *, steps: int = 2) -> Refined:
    """Turn approximate right singular vectors of a square matrix into accurate factors.

    Sort, `U = M V / s`, weighted orthogonalisation, then steps of Ogita and Aishima, "Iterative
    refinement for singular value decomposition based on matrix multiplication" (J. Comput. Appl. Math. 369,
    2020, Algorithm 1).

    Args:
        matrix: `(..., n, n)` float64, largest entry of order one.
        v: `(..., n, n)` float64, vectors in columns, any order, wrong by at most a few per cent.
        steps: at least 1. Each squares the error: 5e-4 becomes 2e-7, then 3e-13.

    Returns:
        `Refined`. Factors are to be used only where `residual <= TOLERANCE`; elsewhere (a first guess too
        far off, a singular matrix, whose left null vectors no product can find, or NaN) they are meaningless.
    """
    u, s, v = _left_vectors(matrix, v)
    for _ in range(_ORTHOGONALISATIONS):
        u = _orthogonalise_weighted(u, s)
    for _ in range(steps):
        u, s, v, settled = _refinement_step(matrix, u, v)
    u = torch.where(s.unsqueeze(-2) < 0, -u, u)  # the smallest value may have been refined through zero
    s, order = s.abs().sort(dim=-1, descending=True)
    u, v = _permute_columns(u, order), _permute_columns(v, order)
    # A pair of close values can be far from settled and leave next to no residual.
    return Refined(u, s, v, torch.where(settled, residual(matrix, u, s, v), torch.inf))


def residual(matrix: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """Worst entry of `I - U^T U`, `I - V^T V` and `(M V - U diag(s)) / s_1`; NaN becomes infinity."""
    scale = s[..., :1, None].abs().clamp_min(torch.finfo(s.dtype).tiny)
    parts = [_defect(u), _defect(v), (matrix @ v - u * s.unsqueeze(-2)) / scale]
    worst = torch.stack([part.abs().amax((-2, -1)) for part in parts]).amax(0)
    return torch.where(worst.isnan(), torch.inf, worst)


def _left_vectors(matrix: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b = matrix @ v
    s, order = torch.linalg.vector_norm(b, dim=-2).sort(dim=-1, descending=True)
    b, v = _permute_columns(b, order), _permute_columns(v, order)
    return b / torch.where(s == 0, 1, s).unsqueeze(-2), s, v


def _orthogonalise_weighted(u: Tensor, s: Tensor) -> Tensor:
    """Lean on the vectors of large singular values: `M v / s` is accurate there and wrong where s is tiny."""
    squares = s.square()
    total = squares.unsqueeze(-1) + squares.unsqueeze(-2)
    weight = squares.unsqueeze(-1) / torch.where(total == 0, 1, total)
    u = u + u @ (_defect(u) * weight)
    norm = torch.linalg.vector_norm(u, dim=-2, keepdim=True)
    return u / torch.where(norm == 0, 1, norm)


def _refinement_step(matrix: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step, and whether every pair of distinct values was within its reach, `(...)`."""
    defect_u, defect_v = _defect(u), _defect(v)
    t = u.mT @ (matrix @ v)
    diagonal = t.diagonal(dim1=-2, dim2=-1)
    s = diagonal / (1 - (defect_u.diagonal(dim1=-2, dim2=-1) + defect_v.diagonal(dim1=-2, dim2=-1)) / 2)
    s_i, s_j = s.unsqueeze(-1), s.unsqueeze(-2)
    alpha, beta = t + s_j * defect_u, t.mT + s_j * defect_v
    gap = s_j - s_i
    # Linearised rotations hold only while small against the gap. For a cluster (repeated values, and i = j)
    # any orthonormal basis is as good as another, so there only the loss of orthogonality is repaired.
    resolved = gap.abs() > _CLUSTER * s.amax(-1)[..., None, None]
    apart = resolved & (alpha.abs() + beta.abs() <= 2 * _LARGEST_ANGLE * gap.abs())
    settled = (apart == resolved).all(-1).all(-1)
    difference = torch.where(apart, gap * (s_j + s_i), 1)
    u = u + u @ torch.where(apart, (alpha * s_j + beta * s_i) / difference, defect_u / 2)
    v = v + v @ torch.where(apart, (alpha * s_i + beta * s_j) / difference, defect_v / 2)
    return u, s, v, settled


def _defect(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device) - x.mT @ x


def _permute_columns(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(-1, order.unsqueeze(-2).expand(x.shape))

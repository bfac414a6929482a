"""What `refine` does between its products, entry by entry: the steps and their reference.

Legend: `gram_u = U^T U` and `gram_v = V^T V`, whose defects are `I - U^T U` and `I - V^T V`; `t = U^T M V`.
All float64, matrices `(..., n, n)`.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

CLUSTER = 1e-6  # gaps below this part of s_1 cannot be told from the rounding of a float32 matrix
LARGEST_ANGLE = 0.15  # beyond it the linearised rotation is not to be trusted


class Rotations(NamedTuple):
    """`U <- U + U f`, `V <- V + V g`; values `s` (..., n); `settled` (...) if every pair was within reach."""

    f: Tensor
    g: Tensor
    s: Tensor
    settled: Tensor


class Entrywise(Protocol):
    """The three steps, for one kind of device."""

    def weighted_defect(self, gram_u: Tensor, s: Tensor) -> Tensor:
        """`(I - U^T U)_ij s_i^2 / (s_i^2 + s_j^2)`: lean on vectors of large values, which are accurate."""

    def rotations(self, t: Tensor, gram_u: Tensor, gram_v: Tensor) -> Rotations:
        """The corrections of one step of Ogita and Aishima."""

    def worst_entry(self, gram_u: Tensor, gram_v: Tensor, mv: Tensor, u: Tensor, s: Tensor) -> Tensor:
        """Largest entry of `I - U^T U`, `I - V^T V` and `(M V - U diag(s)) / s_1`; NaN gives infinity."""


class EntrywiseReference:
    """The steps in plain PyTorch."""

    def weighted_defect(self, gram_u: Tensor, s: Tensor) -> Tensor:
        """See `Entrywise`."""
        squares = s.square()
        total = squares.unsqueeze(-1) + squares.unsqueeze(-2)
        return _defect(gram_u) * squares.unsqueeze(-1) / torch.where(total == 0, 1, total)

    def rotations(self, t: Tensor, gram_u: Tensor, gram_v: Tensor) -> Rotations:
        """See `Entrywise`."""
        defect_u, defect_v = _defect(gram_u), _defect(gram_v)
        lost = defect_u.diagonal(dim1=-2, dim2=-1) + defect_v.diagonal(dim1=-2, dim2=-1)
        s = t.diagonal(dim1=-2, dim2=-1) / (1 - lost / 2)
        s_i, s_j = s.unsqueeze(-1), s.unsqueeze(-2)
        alpha, beta = t + s_j * defect_u, t.mT + s_j * defect_v
        gap = s_j - s_i
        # Linearised rotations hold only while small against the gap. For a cluster (repeated values, and i
        # = j) any orthonormal basis is as good as another, so there only the loss of orthogonality is
        # repaired.
        distinct = gap.abs() > CLUSTER * s.amax(-1)[..., None, None]
        apart = distinct & (alpha.abs() + beta.abs() <= 2 * LARGEST_ANGLE * gap.abs())
        difference = torch.where(apart, gap * (s_j + s_i), 1)
        f = torch.where(apart, (alpha * s_j + beta * s_i) / difference, defect_u / 2)
        g = torch.where(apart, (alpha * s_i + beta * s_j) / difference, defect_v / 2)
        return Rotations(f, g, s, (apart == distinct).all(-1).all(-1))

    def worst_entry(self, gram_u: Tensor, gram_v: Tensor, mv: Tensor, u: Tensor, s: Tensor) -> Tensor:
        """See `Entrywise`."""
        scale = s[..., :1, None].clamp_min(torch.finfo(s.dtype).tiny)
        parts = (_defect(gram_u), _defect(gram_v), (mv - u * s.unsqueeze(-2)) / scale)
        worst = torch.stack([part.abs().amax((-2, -1)) for part in parts]).amax(0)
        return torch.where(worst.isnan(), torch.inf, worst)


def _defect(gram: Tensor) -> Tensor:
    return torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) - gram

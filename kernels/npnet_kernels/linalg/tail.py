"""What `refine` does between its products, entry by entry: the steps and their reference.

Legend: `x` is the stack `(U, V, M V)`, `(3, ..., n, n)`, vectors in columns; `grams` are `(U^T U, V^T V)`,
whose defects are `I - U^T U` and `I - V^T V`; `t = U^T M V`. All float64. What a step returns for a product
is "one plus the change", so that `U <- U + U D` is the product `U (I + D)` and no addition: an entry is
rounded to 1e-16 of the vector either way.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

CLUSTER = 1e-6  # gaps below this part of s_1 cannot be told from the rounding of a float32 matrix
LARGEST_ANGLE = 0.15  # beyond it the linearised rotation is not to be trusted


class Rotations(NamedTuple):
    """`x <- x change` (3, ..., n, n); values `s` (..., n); `settled` (...) 1 if every pair was within reach.

    `settled` may keep one flag a tile in a last dimension of its own.
    """

    change: Tensor
    s: Tensor
    settled: Tensor


class Finished(NamedTuple):
    """float32 `u` (..., n, n), `s` (..., n) descending, `vh` (..., n, n); float64 `residual` (...)."""

    u: Tensor
    s: Tensor
    vh: Tensor
    residual: Tensor


class Entrywise(Protocol):
    """The steps, for one kind of device."""

    def left_vectors(self, mv: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`x` and `s`: columns by descending norm `s` of `M V`, U its normalised columns."""

    def weighted_change(self, gram_u: Tensor, s: Tensor) -> Tensor:
        """`I + (I - U^T U) * w`, `w_ij = s_i^2 / (s_i^2 + s_j^2)`: lean on vectors of large values."""

    def rotations(self, t: Tensor, grams: Tensor) -> Rotations:
        """The corrections of one step of Ogita and Aishima."""

    def worst_entry(self, grams: Tensor, x: Tensor, s: Tensor) -> Tensor:
        """Largest entry of `I - U^T U`, `I - V^T V` and `(M V - U diag(s)) / s_1`; NaN gives infinity.

        `(...)`, or one value a tile in a last dimension of its own.
        """

    def finish(
        self, x: Tensor, s: Tensor, worst: Tensor, settled: Tensor, scale: Tensor, poison: float | None
    ) -> Finished:
        """Values made positive, times `scale`, sorted, narrowed; NaN where the residual exceeds `poison`."""


class EntrywiseReference:
    """The steps in plain PyTorch."""

    def left_vectors(self, mv: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Entrywise`."""
        s, order = torch.linalg.vector_norm(mv, dim=-2).sort(dim=-1, descending=True, stable=True)
        mv, v = permute_columns(mv, order), permute_columns(v, order)
        return torch.stack((mv / torch.where(s == 0, 1, s).unsqueeze(-2), v, mv)), s

    def weighted_change(self, gram_u: Tensor, s: Tensor) -> Tensor:
        """See `Entrywise`."""
        squares = s.square()
        total = squares.unsqueeze(-1) + squares.unsqueeze(-2)
        weighted = _defect(gram_u) * squares.unsqueeze(-1) / torch.where(total == 0, 1, total)
        return _unit(gram_u) + weighted

    def rotations(self, t: Tensor, grams: Tensor) -> Rotations:
        """See `Entrywise`."""
        defect_u, defect_v = _defect(grams)
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
        settled = (apart == distinct).all(-1).all(-1).int()
        return Rotations(_unit(t) + torch.stack((f, g, g)), s, settled)

    def worst_entry(self, grams: Tensor, x: Tensor, s: Tensor) -> Tensor:
        """See `Entrywise`."""
        u, _, mv = x
        scale = s.abs().amax(-1)[..., None, None].clamp_min(torch.finfo(s.dtype).tiny)
        parts = (*_defect(grams), (mv - u * s.unsqueeze(-2)) / scale)
        worst = torch.stack([part.abs().amax((-2, -1)) for part in parts]).amax(0)
        return torch.where(worst.isnan(), torch.inf, worst)

    def finish(
        self, x: Tensor, s: Tensor, worst: Tensor, settled: Tensor, scale: Tensor, poison: float | None
    ) -> Finished:
        """See `Entrywise`."""
        u, v = (torch.where(s.unsqueeze(-2) < 0, -x[0], x[0]), x[1])
        s, order = s.abs().sort(dim=-1, descending=True, stable=True)
        u, v = permute_columns(u, order), permute_columns(v, order)
        residual = torch.where(settled == 1, worst, torch.inf)
        u, s, vh = u.float(), (s * scale.unsqueeze(-1)).float(), v.mT.float().contiguous()
        if poison is not None:
            bad = ~(residual <= poison)[..., None, None]
            u, vh = u.masked_fill(bad, torch.nan), vh.masked_fill(bad, torch.nan)
            s = s.masked_fill(bad.squeeze(-1), torch.nan)
        return Finished(u, s, vh, residual)


def permute_columns(x: Tensor, order: Tensor) -> Tensor:
    """Columns of `x` (..., n, n) in the order given, `(..., n)`."""
    return x.gather(-1, order.unsqueeze(-2).expand(x.shape))


def _unit(gram: Tensor) -> Tensor:
    return torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def _defect(gram: Tensor) -> Tensor:
    return _unit(gram) - gram

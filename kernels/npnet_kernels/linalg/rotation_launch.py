"""Launches of the tail's entrywise kernels."""

import torch
from torch import Tensor

from npnet_kernels.linalg import rotation_kernels as kernels
from npnet_kernels.linalg.rotations import CLUSTER, LARGEST_ANGLE, Rotations

_BLOCK = 32


class EntrywiseKernels:
    """The steps of `rotations.Entrywise` for `(B, n, n)` float64 on CUDA, one launch each."""

    def weighted_defect(self, gram_u: Tensor, s: Tensor) -> Tensor:
        """See `Entrywise`."""
        out = torch.empty_like(gram_u)
        n = gram_u.shape[-1]
        kernels.weighted_defect_kernel[_grid(gram_u)](gram_u, s.contiguous(), out, n, BLOCK=_BLOCK)
        return out

    def rotations(self, t: Tensor, gram_u: Tensor, gram_v: Tensor) -> Rotations:
        """See `Entrywise`."""
        batch, n = t.shape[:2]
        f, g, s = torch.empty_like(t), torch.empty_like(t), t.new_empty(batch, n)
        grid = _grid(t)
        settled = torch.empty(batch, grid[0] * grid[1], dtype=torch.int32, device=t.device)
        kernels.rotations_kernel[grid](
            t, gram_u, gram_v, f, g, s, settled, n, CLUSTER, LARGEST_ANGLE,
            BLOCK=_BLOCK, SIDE=1 << (n - 1).bit_length(),
        )  # fmt: skip
        return Rotations(f, g, s, settled.amin(-1) == 1)

    def worst_entry(self, gram_u: Tensor, gram_v: Tensor, mv: Tensor, u: Tensor, s: Tensor) -> Tensor:
        """See `Entrywise`."""
        batch, n = mv.shape[:2]
        grid = _grid(mv)
        worst = mv.new_empty(batch, grid[0] * grid[1])
        kernels.worst_entry_kernel[grid](
            gram_u, gram_v, mv, u.contiguous(), s.contiguous(), worst, n, BLOCK=_BLOCK
        )
        return worst.amax(-1)


def _grid(matrix: Tensor) -> tuple[int, int, int]:
    side = -(-matrix.shape[-1] // _BLOCK)
    return side, side, matrix.shape[0]

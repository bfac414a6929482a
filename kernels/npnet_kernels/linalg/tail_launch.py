"""Launches of the tail's entrywise kernels."""

import torch
from torch import Tensor

from npnet_kernels.linalg import tail_kernels as kernels
from npnet_kernels.linalg.tail import CLUSTER, LARGEST_ANGLE, Finished, Rotations
from npnet_kernels.tiles import power_of_two

_BLOCK = 32


class EntrywiseKernels:
    """The steps of `tail.Entrywise` for `(B, n, n)` float64 on CUDA, one or two launches each."""

    def left_vectors(self, mv: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Entrywise`."""
        batch, n = mv.shape[:2]
        grid = _grid(mv)
        norms, s, x = mv.new_empty(batch, n), mv.new_empty(batch, n), mv.new_empty(3, *mv.shape)
        mv = mv.contiguous()
        kernels.norms_kernel[(grid[0], batch)](mv, norms, n, BLOCK=_BLOCK)
        kernels.left_vectors_kernel[grid](mv, v.contiguous(), norms, x, s, n, BLOCK=_BLOCK)
        return x, s

    def weighted_change(self, gram_u: Tensor, s: Tensor) -> Tensor:
        """See `Entrywise`."""
        out, n = torch.empty_like(gram_u), gram_u.shape[-1]
        kernels.weighted_change_kernel[_grid(gram_u)](gram_u, s.contiguous(), out, n, BLOCK=_BLOCK)
        return out

    def rotations(self, t: Tensor, grams: Tensor) -> Rotations:
        """See `Entrywise`; `settled` (B, tiles)."""
        batch, n = t.shape[:2]
        change, s = t.new_empty(3, *t.shape), t.new_empty(batch, n)
        grid = _grid(t)
        settled = torch.empty(batch, grid[0] * grid[1], dtype=torch.int32, device=t.device)
        kernels.rotations_kernel[grid](
            t.contiguous(), grams.contiguous(), change, s, settled, n, CLUSTER, LARGEST_ANGLE,
            BLOCK=_BLOCK, SIDE=power_of_two(n),
        )  # fmt: skip
        return Rotations(change, s, settled)

    def worst_entry(self, grams: Tensor, x: Tensor, s: Tensor) -> Tensor:
        """See `Entrywise`; `(B, tiles)`."""
        batch, n = s.shape
        grid = _grid(x[0])
        worst = x.new_empty(batch, grid[0] * grid[1])
        kernels.worst_entry_kernel[grid](
            grams.contiguous(), x, s, worst, n, BLOCK=_BLOCK, SIDE=power_of_two(n)
        )
        return worst

    def finish(
        self, x: Tensor, s: Tensor, worst: Tensor, settled: Tensor, scale: Tensor, poison: float | None
    ) -> Finished:
        """See `Entrywise`."""
        batch, n = s.shape
        u, vh = (torch.empty(batch, n, n, dtype=torch.float32, device=x.device) for _ in range(2))
        values = torch.empty(batch, n, dtype=torch.float32, device=x.device)
        residual, tiles = x.new_empty(batch), worst.shape[-1]
        kernels.finish_kernel[_grid(x[0])](
            x, s, worst, settled, scale, u, values, vh, residual, n, tiles, poison or 0.0,
            POISON=poison is not None, BLOCK=_BLOCK, TILES=power_of_two(tiles),
        )  # fmt: skip
        return Finished(u, values, vh, residual)


def _grid(matrix: Tensor) -> tuple[int, int, int]:
    side = -(-matrix.shape[-1] // _BLOCK)
    return side, side, matrix.shape[0]

"""The launches of the simultaneous Jacobi method: a fixed sequence, so that a CUDA graph can hold it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from npnet_kernels.linalg import jacobi_kernels as kernels
from npnet_kernels.linalg.schedule import ALPHA, Schedule, schedule_for

_COARSE, _FINE = "tf32", "tf32x3"  # tf32x3 keeps 22 bits of a product


@dataclass(frozen=True)
class Tiling:
    """Side of an output tile, and terms a step of its sum takes (common, so that tiles round alike)."""

    block: int
    block_k: int = 32
    num_warps: int = 4


def choose_tiling(batch: int) -> Tiling:
    """Small tiles while a batch leaves the device half empty: 64 programs a product at n = 256, else 16."""
    return Tiling(32) if batch <= 8 else Tiling(64)


def jacobi_vectors(matrix: Tensor, schedule: Schedule | None = None) -> Tensor:
    """Right singular vectors by the kernels, in columns and in no order.

    Args:
        matrix: `(B, n, n)` float32 with entries of order one.
        schedule: None for `schedule_for(n)`.

    Returns:
        `(B, n, n)` float32. Whether a matrix converged is not said here: `refine` certifies the factors.
    """
    return _Run(matrix.contiguous(), schedule or schedule_for(matrix.shape[-1])).vectors()


class _Run:
    """Buffers and launches for one batch; `stack` holds B and V, as one batch of twice the size."""

    def __init__(self, matrix: Tensor, plan: Schedule) -> None:
        batch, n = matrix.shape[:2]
        self.matrix, self.plan = matrix, plan
        self.tiling = choose_tiling(batch)
        self.side = -(-n // self.tiling.block)
        eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device).expand(matrix.shape)
        self.stack = torch.stack((matrix, eye))
        self.spare = torch.empty_like(self.stack)
        self.k, self.q, self.p = (torch.empty_like(matrix) for _ in range(3))
        self.k_norm, self.q_norm = (matrix.new_empty(batch, self.side**2) for _ in range(2))
        # One row an iteration: a launch reads the row that an earlier launch wrote.
        self.done = torch.zeros(plan.coarse + plan.fine + 1, batch, dtype=torch.int32, device=matrix.device)

    def vectors(self) -> Tensor:
        plan = self.plan
        for iteration in range(plan.coarse):
            self._iterate(iteration, plan.coarse_threshold, _COARSE, limit=-1.0)
        for iteration in range(plan.fine):
            if iteration % plan.clean_every == 0:
                self._clean(plan.coarse + iteration)
            self._iterate(plan.coarse + iteration, plan.fine_threshold, _FINE, limit=plan.converged**2)
        return self.stack[1]

    def _iterate(self, iteration: int, threshold: float, precision: str, limit: float) -> None:
        n, done, next_done = self.matrix.shape[-1], self.done[iteration], self.done[iteration + 1]
        grid, blocks, tiles = self._grid(), self._blocks(precision), self.side**2
        sums = {"TILES": 1 << (tiles - 1).bit_length()}
        kernels.angles_kernel[grid](self.stack, self.k, self.k_norm, done, n, threshold, **blocks)
        kernels.square_kernel[grid](
            self.k, self.q, self.k_norm, self.q_norm, done, next_done, n, limit, tiles, **blocks, **sums
        )  # fmt: skip
        kernels.polynomial_kernel[grid](
            self.k, self.q, self.p, self.q_norm, done, n, self.plan.step, ALPHA, tiles, **blocks, **sums
        )  # fmt: skip
        self._multiply(self.stack, self.p, self.stack, self.spare, done, precision, add=True)
        self.stack, self.spare = self.spare, self.stack

    def _clean(self, iteration: int) -> None:
        n, done = self.matrix.shape[-1], self.done[iteration]
        kernels.defect_kernel[self._grid()](self.stack[1], self.p, done, n, **self._blocks(_FINE))
        self._multiply(self.stack[1], self.p, self.stack[1], self.spare[1], done, _FINE, add=True)
        self._multiply(self.matrix, self.spare[1], self.stack[0], self.spare[0], done, _FINE, add=False)
        self.stack, self.spare = self.spare, self.stack

    def _multiply(
        self, left: Tensor, right: Tensor, old: Tensor, out: Tensor, done: Tensor, precision: str, add: bool
    ) -> None:  # fmt: skip
        n, batch = right.shape[-1], right.shape[0]
        grid = (self.side, self.side, left.numel() // (n * n))
        kernels.multiply_kernel[grid](
            left, right, old, out, done, n, batch, ADD=add, **self._blocks(precision)
        )

    def _grid(self) -> tuple[int, int, int]:
        return self.side, self.side, self.matrix.shape[0]

    def _blocks(self, precision: str) -> dict[str, int | str]:
        tiling = self.tiling
        return {
            "PRECISION": precision,
            "BLOCK": tiling.block,
            "BLOCK_K": tiling.block_k,
            "num_warps": tiling.num_warps,
        }

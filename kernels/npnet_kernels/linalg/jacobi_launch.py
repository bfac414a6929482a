"""The launches of the simultaneous Jacobi method: a fixed sequence, so that a CUDA graph can hold it.

Two drivers of the same phases give the same bits. `persistent`: the coarse iterations are one cooperative
launch, the fine ones another, with barriers across the grid inside. `phases`: one launch a phase, 126 at n =
256, for devices that have no cooperative launch, and for comparison.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npnet_kernels.linalg import jacobi_kernels as kernels
from npnet_kernels.linalg import persistent_kernel
from npnet_kernels.linalg.driver import Driver, driver_for
from npnet_kernels.linalg.schedule import ALPHA, Schedule, schedule_for
from npnet_kernels.tiles import power_of_two

PROGRAMS_PER_SM = 2
"""Programs of the persistent kernel that fit one multiprocessor of any supported GPU; a test holds it."""
_REGISTERS = 248  # two programs fit; left alone, the compiler spills on sm_86 to make room for a third
_COARSE, _FINE = "tf32", "tf32x3"  # tf32x3 keeps 22 bits of a product


@dataclass(frozen=True)
class Tiling:
    """Side of an output tile, and terms a step of its sum takes.

    One for all batches: tiles of 64 would halve the traffic of large batches, but Hopper multiplies them
    with other instructions, and a matrix's last bits would depend on its neighbours. 32 gives 64 programs a
    product at n = 256.
    """

    block: int = 32
    block_k: int = 16  # 32 spills on sm_80
    num_warps: int = 4
    num_stages: int = 4


def jacobi_vectors(
    matrix: Tensor,
    schedule: Schedule | None = None,
    *,
    driver: Driver | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    """Right singular vectors by the kernels, in columns and in no order.

    Args:
        matrix: `(B, n, n)` float64 or float32 with entries of order one.
        schedule: None for `schedule_for(n)`.
        driver: None for `driver_for(matrix.device)`.
        tiling: None for `Tiling()`.

    Returns:
        `(B, n, n)` float64, as accurate as float32. Whether a matrix converged is not said here: `refine`
        certifies the factors.

    Raises:
        SVDInputError: the environment forces a driver that cannot run.
    """
    driver = driver or driver_for(matrix.device)[0]
    run = _Run(matrix.contiguous(), schedule or schedule_for(matrix.shape[-1]), tiling or Tiling())
    return run.persistently() if driver == "persistent" else run.by_phases()


def programs(items: int, device: torch.device) -> int:
    """How many programs share `items` tiles: no more than are resident at once, one in the interpreter."""
    if device.type != "cuda":
        return 1
    resident = PROGRAMS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count
    return min(items, resident)


class _Run:
    """Buffers and launches for one batch; a stack holds B and V, as one batch of twice the size."""

    def __init__(self, matrix: Tensor, plan: Schedule, tiling: Tiling) -> None:
        self.batch, self.n = matrix.shape[:2]
        self.plan, self.tiling = plan, tiling
        self.side = -(-self.n // tiling.block)
        single: Any = {"dtype": torch.float32, "device": matrix.device}
        integers: Any = {"dtype": torch.int32, "device": matrix.device}
        self.matrix = torch.empty(matrix.shape, **single)
        self.work = torch.empty(2, 2, *matrix.shape, **single)
        self.k, self.q, self.p = (torch.empty(matrix.shape, **single) for _ in range(3))
        self.k_norm, self.q_norm = (torch.empty(self.batch, self.side**2, **single) for _ in range(2))
        # One row an iteration: a phase reads the row that an earlier phase wrote.
        self.done = torch.empty(plan.coarse + plan.fine + 1, self.batch, **integers)
        self.counters = torch.empty(2, **integers)
        kernels.start_kernel[self._grid()](
            matrix, self.matrix, self.work, self.done, self.counters, self.n,
            COUNTERS=2, BLOCK=tiling.block, num_warps=tiling.num_warps,
        )  # fmt: skip

    def persistently(self) -> Tensor:
        plan = self.plan
        out = torch.empty(self.matrix.shape, dtype=torch.float64, device=self.matrix.device)
        iterations = plan.coarse + plan.fine
        self._iterate_all(0, 0, plan.coarse, plan.coarse_threshold, -1.0, _COARSE, out)
        self._iterate_all(1, plan.coarse, iterations, plan.fine_threshold, plan.converged**2, _FINE, out)
        return out

    def _iterate_all(
        self, phase: int, first: int, last: int, threshold: float, limit: float, precision: str, out: Tensor
    ) -> None:  # fmt: skip
        grid = (programs(2 * self.batch * self.side**2, self.matrix.device),)
        persistent_kernel.jacobi_kernel[grid](
            self.matrix, self.work, self.k, self.q, self.p, self.k_norm, self.q_norm, self.done,
            self.counters[phase:], out, self.n, self.batch, self.side, first, last, threshold, limit,
            self.plan.step, ALPHA, self.plan.clean_every, CLEAN=precision == _FINE, COUNT=self._count(),
            **self._blocks(precision), launch_cooperative_grid=True, maxnreg=_REGISTERS,
        )  # fmt: skip

    def by_phases(self) -> Tensor:
        plan = self.plan
        self.stack, self.spare = self.work.unbind()
        for iteration in range(plan.coarse):
            self._iterate(iteration, plan.coarse_threshold, _COARSE, limit=-1.0)
        for iteration in range(plan.fine):
            if iteration % plan.clean_every == 0:
                self._clean(plan.coarse + iteration)
            self._iterate(plan.coarse + iteration, plan.fine_threshold, _FINE, limit=plan.converged**2)
        return self.stack[1].double()

    def _iterate(self, iteration: int, threshold: float, precision: str, limit: float) -> None:
        n, done, next_done = self.n, self.done[iteration], self.done[iteration + 1]
        grid, blocks, count = self._grid(), self._blocks(precision), self._count()
        kernels.angles_kernel[grid](self.stack, self.k, self.k_norm, done, n, threshold, **blocks)
        kernels.square_kernel[grid](
            self.k, self.q, self.k_norm, self.q_norm, done, next_done, n, limit, **blocks, COUNT=count
        )  # fmt: skip
        kernels.polynomial_kernel[grid](
            self.k, self.q, self.p, self.q_norm, done, n, self.plan.step, ALPHA, **blocks, COUNT=count
        )  # fmt: skip
        self._multiply(self.stack, self.p, self.stack, self.spare, done, precision, add=True)
        self.stack, self.spare = self.spare, self.stack

    def _clean(self, iteration: int) -> None:
        done = self.done[iteration]
        kernels.defect_kernel[self._grid()](self.stack[1], self.p, done, self.n, **self._blocks(_FINE))
        self._multiply(self.stack[1], self.p, self.stack[1], self.spare[1], done, _FINE, add=True)
        self._multiply(self.matrix, self.spare[1], self.stack[0], self.spare[0], done, _FINE, add=False)
        self.stack, self.spare = self.spare, self.stack

    def _multiply(
        self, left: Tensor, right: Tensor, old: Tensor, out: Tensor, done: Tensor, precision: str, add: bool
    ) -> None:  # fmt: skip
        grid = (self.side, self.side, left.numel() // (self.n * self.n))
        kernels.multiply_kernel[grid](
            left, right, old, out, done, self.n, self.batch, ADD=add, **self._blocks(precision)
        )

    def _grid(self) -> tuple[int, int, int]:
        return self.side, self.side, self.batch

    def _count(self) -> int:
        return power_of_two(self.side**2)

    def _blocks(self, precision: str) -> dict[str, int | str]:
        tiling = self.tiling
        return {
            "PRECISION": precision,
            "BLOCK": tiling.block,
            "BLOCK_K": tiling.block_k,
            "num_warps": tiling.num_warps,
            "num_stages": tiling.num_stages,
        }

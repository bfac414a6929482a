"""The schedule of the simultaneous Jacobi method: how many iterations, how long a step, when to stop."""

import math
from dataclasses import dataclass

ALPHA = (2 - math.sqrt(2)) / 4
"""Of the polynomial in `jacobi` that stands for the exponential."""


@dataclass(frozen=True)
class Schedule:
    """What is run for matrices of side n; the numbers come from CPU runs on Gaussian matrices.

    Attributes:
        step: `c`, the longest step.
        coarse: iterations in TF32, with no convergence test.
        fine: the most iterations near float32 that follow; a matrix stops at its convergence.
        clean_every: fine iterations from one clean-up to the next.
        coarse_threshold: columns of relative product below this are not rotated in the coarse phase.
        fine_threshold: the same for the fine phase.
        converged: `||K||_F` at which an iteration is the last: its error is the square, and the tail
            squares twice.
    """

    step: float
    coarse: int
    fine: int = 12
    clean_every: int = 4
    coarse_threshold: float = 2e-4
    fine_threshold: float = 1e-6
    converged: float = 1e-3


def schedule_for(n: int) -> Schedule:
    """The schedule for side `n`: on noise, `||K^2||_F^(1/2)` is about n^(1/4) times the 2-norm of K."""
    return Schedule(step=0.65 * n**0.25, coarse=2 * math.ceil(math.log2(n)) + 1)

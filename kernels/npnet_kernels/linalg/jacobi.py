"""`jacobi`: all rotations of a sweep at once, as matrix products; the method and its reference.

One iteration, with `B = M V`:

    T = B^T B
    K_ij = the Jacobi angle of columns i and j (Golub and Van Loan, 4th ed., section 8.5), |K_ij| <= pi/4
    t = min(1, c / ||K^2||_F^(1/2))
    P = t K + t^2 K^2 / 2 + (alpha t^3 K + alpha^2 t^4 K^2) K^2,   alpha = (2 - sqrt 2) / 4
    B <- B + B P,   V <- V + V P

`I + P` replaces `exp(t K)`. An eigenvalue `i x` of `t K` becomes one of squared modulus `1 + alpha^4 x^8`:
for the price of two products the update is orthogonal to eighth order, where the Taylor polynomial `I + K +
K^2 / 2` is to fourth. It therefore takes longer steps and can leave orthogonality alone until a clean-up:
one Newton-Schulz step for V and `B = M V`. `||K^2||_F^(1/2)` bounds `||K||_2` from above, so no step is
longer than `c`; a power iteration, cheaper, underestimates the norm and diverges.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from npnet_kernels.linalg.refinement import Refined, refine, refine_one_by_one
from npnet_kernels.linalg.schedule import ALPHA, Schedule, schedule_for

Product = Callable[[Tensor, Tensor], Tensor]


def jacobi_svd(matrix: Tensor) -> Refined:
    """SVD by simultaneous Jacobi rotations: Triton kernels on CUDA, the PyTorch reference on the CPU.

    Made for noise. Strongly structured matrices (rank-deficient, smooth) may not converge within the
    schedule; the certificate of `refine` says so.

    Args:
        matrix: `(B, n, n)` float64 with entries of order one (see `scaling.normalise`).

    Returns:
        `Refined`, meaningless wherever the residual of `finish` exceeds the tolerance.
    """
    if matrix.is_cuda:
        from npnet_kernels.linalg.jacobi_launch import jacobi_vectors

        return refine(matrix, jacobi_vectors(matrix))
    return refine_one_by_one(_solve_reference, matrix)


def _solve_reference(matrix: Tensor) -> Refined:
    return refine(matrix, jacobi_vectors_reference(matrix.float()).double())


def jacobi_vectors_reference(
    matrix: Tensor, schedule: Schedule | None = None, coarse_product: Product = torch.matmul
) -> Tensor:
    """Right singular vectors of one matrix, `(n, n)` float32, in columns and in no order.

    `coarse_product` multiplies in the coarse phase; `tf32_product` shows what TF32 does to the iteration.
    """
    plan = schedule or schedule_for(matrix.shape[-1])
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    b, v = matrix, eye
    for _ in range(plan.coarse):
        rotation = _angles(b, plan.coarse_threshold, coarse_product)
        b, v = _rotate(b, v, rotation, plan.step, coarse_product)
    for iteration in range(plan.fine):
        if iteration % plan.clean_every == 0:
            v = v + v @ ((eye - v.mT @ v) / 2)
            b = matrix @ v
        rotation = _angles(b, plan.fine_threshold)
        b, v = _rotate(b, v, rotation, plan.step)
        if torch.linalg.matrix_norm(rotation) <= plan.converged:
            break
    return v


def tf32_product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` as the kernels compute it in TF32: operands rounded to 10 bits of fraction, sums in float32."""
    return _round_to_tf32(a) @ _round_to_tf32(b)


def _round_to_tf32(x: Tensor) -> Tensor:
    """To nearest, ties away from zero, as `cvt.rna.tf32` does. NaN, which the sum could turn to 0, stays."""
    bits = x.contiguous().view(torch.int32)
    return torch.where(x.isnan(), x, ((bits + 0x1000) & ~0x1FFF).view(torch.float32))


def _angles(b: Tensor, threshold: float, multiply: Product = torch.matmul) -> Tensor:
    products = multiply(b.mT, b)
    squares = b.square().sum(-2)
    d_i, d_j = squares.unsqueeze(-1), squares.unsqueeze(-2)
    gap = d_j - d_i
    twice = 2 * products.abs()
    reach = gap.abs() + torch.hypot(gap, twice)
    tangent = twice / torch.where(reach == 0, 1, reach)
    # Pade approximant of atan, to fifth order at 0 as quadratic convergence needs, within 0.007 at 1.
    angle = tangent * (15 + 4 * tangent.square()) / (15 + 9 * tangent.square())
    positive = (products > 0) == (gap >= 0)
    negligible = products.abs() <= threshold * (d_i.sqrt() * d_j.sqrt())
    upper = torch.where(negligible, 0, torch.where(positive, angle, -angle)).triu(1)
    return upper - upper.mT


def _rotate(
    b: Tensor, v: Tensor, rotation: Tensor, step: float, multiply: Product = torch.matmul
) -> tuple[Tensor, Tensor]:
    square = multiply(rotation, rotation)
    bound = torch.linalg.matrix_norm(square).sqrt()
    t = torch.clamp(step / torch.where(bound == 0, 1, bound), max=1.0)
    k, k2 = t * rotation, t.square() * square
    p = k + k2 / 2 + multiply(ALPHA * k + ALPHA**2 * k2, k2)
    return b + multiply(b, p), v + multiply(v, p)

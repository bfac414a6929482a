"""Odd polynomials of a matrix, `M p(M^T M) = U diag(s p(s^2)) Vh`: products only, no factors and no signs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from npnet_kernels.backends import device_guard, full_precision
from npnet_kernels.errors import KernelInputError
from npnet_kernels.precision import products_in_tf32

MAX_DEGREE = 8  # of p: powers of [-1, 1] lose about 2^(degree - 1) roundings against the Chebyshev basis


def odd_polynomial(matrix: Tensor, coefficients: Sequence[float], bound: float) -> tuple[Tensor, Tensor]:
    """`M p(M^T M)` in float32 by the method of Paterson and Stockmeyer (SIAM J. Comput. 2, 1973).

    Args:
        matrix: (B, R, C) float32. NaN and infinity propagate.
        coefficients: of p in Chebyshev polynomials of `2 x / bound^2 - 1`, at most `MAX_DEGREE` + 1.
        bound: end of the interval of singular values.

    Returns:
        The product (B, R, C), and (B, 2) the Schatten norms 2 and 8 of each matrix. The latter is no smaller
        than the largest singular value.

    Raises:
        KernelInputError: wrong shape or dtype, no or too many coefficients, or a bound that is not positive.
    """
    if matrix.dim() != 3 or 0 in matrix.shape[1:] or matrix.dtype != torch.float32:
        raise KernelInputError(
            f"matrix: expected (B, R, C) float32; given {tuple(matrix.shape)} {matrix.dtype}"
        )
    if not 1 <= len(coefficients) <= MAX_DEGREE + 1 or not (math.isfinite(bound) and bound > 0):
        raise KernelInputError(
            f"expected 1 to {MAX_DEGREE + 1} coefficients and a positive bound; "
            f"given {len(coefficients)} and {bound}"
        )
    with device_guard(matrix), full_precision(matrix):
        if not (matrix.is_cuda and products_in_tf32()):
            return _evaluate(matrix, coefficients, bound)
        # TF32 would round the Gram matrix by 5e-4. The setting is the caller's; double precision ignores it.
        result, norms = _evaluate(matrix.double(), coefficients, bound)
        return result.float(), norms.float()


def odd_polynomial_reference(matrix: Tensor, coefficients: Sequence[float], bound: float) -> Tensor:
    """The same from an eigendecomposition in float64: (B, R, C) float64."""
    wide = matrix.double()
    squares, v = torch.linalg.eigh(wide.mT @ wide)
    values = chebyshev.chebval((2 * squares / bound**2 - 1).cpu().numpy(), list(coefficients))
    return wide @ (v * torch.as_tensor(values, device=v.device)[:, None]) @ v.mT


def _evaluate(matrix: Tensor, coefficients: Sequence[float], bound: float) -> tuple[Tensor, Tensor]:
    scaled = matrix / bound
    wide = matrix.shape[1] < matrix.shape[2]
    gram = scaled @ scaled.mT if wide else scaled.mT @ scaled  # the smaller of both
    square = gram @ gram
    norms = torch.stack(
        [gram.diagonal(dim1=1, dim2=2).sum(1).sqrt(), square.square().sum((1, 2)) ** 0.125], 1
    )
    eye = torch.eye(gram.shape[-1], dtype=matrix.dtype, device=matrix.device)
    y = 2 * gram - eye
    # y^2 from the square of the Gram matrix, which the norms need anyway
    powers = [eye, y, 4 * square - 4 * gram + eye]
    monomial = chebyshev.cheb2poly(list(coefficients)).tolist()
    block = 2 if len(monomial) <= 5 else 3
    if len(monomial) > 5:
        powers.append(powers[2] @ y)
    result: Tensor | None = None
    for start in reversed(range(0, len(monomial), block)):
        terms = monomial[start : start + block]
        part = sum((c * power for c, power in zip(terms, powers, strict=False)), torch.zeros_like(gram))
        result = part if result is None else result @ powers[block] + part
    assert result is not None  # there is a coefficient
    return (result @ matrix if wide else matrix @ result), norms * bound

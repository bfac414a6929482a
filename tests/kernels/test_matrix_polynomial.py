"""Odd matrix polynomials against an eigendecomposition in float64."""

import pytest
import torch

from npnet_kernels.errors import KernelInputError
from npnet_kernels.linalg.matrix_polynomial import MAX_DEGREE, odd_polynomial, odd_polynomial_reference

TOLERANCE = 2e-6 * 2 ** (MAX_DEGREE / 2)  # float32 roundings of a few products, amplified by the monomials


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 31, 17), (3, 17, 31), (1, 256, 256)])
@pytest.mark.parametrize("count", range(1, MAX_DEGREE + 2))
def test_agrees_with_the_reference(shape: tuple[int, int, int], count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    matrix = torch.randn(shape, generator=generator).mT.contiguous().mT  # not contiguous
    coefficients = torch.randn(count, generator=generator).tolist()
    singular = torch.linalg.svdvals(matrix.double())
    bound = 1.1 * float(singular.max())
    given, norms = odd_polynomial(matrix, coefficients, bound)
    error = given - odd_polynomial_reference(matrix, coefficients, bound)
    assert error.abs().max() < TOLERANCE * bound
    expected = torch.stack([singular.square().sum(1).sqrt(), (singular**8).sum(1) ** 0.125], 1)
    torch.testing.assert_close(norms.double(), expected, rtol=1e-5, atol=0)


def test_ill_conditioned() -> None:
    matrix = torch.randn(1, 40, 1) @ torch.randn(1, 1, 40)
    bound = 1.1 * float(torch.linalg.matrix_norm(matrix, 2))
    given, _ = odd_polynomial(matrix, [0.3, -0.2, 0.1, 0.05], bound)
    assert (
        given - odd_polynomial_reference(matrix, [0.3, -0.2, 0.1, 0.05], bound)
    ).abs().max() < 1e-5 * bound


def test_nan_stays_in_its_matrix() -> None:
    matrix = torch.randn(2, 8, 8)
    matrix[1, 2, 3] = torch.nan
    given, norms = odd_polynomial(matrix, [1.0, 0.5], 10.0)
    assert given[0].isfinite().all()
    assert norms[0].isfinite().all()
    assert given[1].isnan().all()
    assert norms[1].isnan().all()


def test_an_autocast_of_the_caller_changes_nothing() -> None:
    matrix = torch.randn(1, 16, 16)
    expected, _ = odd_polynomial(matrix, [1.0, 0.5, 0.2], 10.0)
    with torch.autocast("cpu", torch.bfloat16):
        given, _ = odd_polynomial(matrix, [1.0, 0.5, 0.2], 10.0)
    assert torch.equal(given, expected)


@pytest.mark.parametrize(
    ("matrix", "count", "bound"),
    [
        (torch.ones(3, 3), 2, 1.0),
        (torch.ones(1, 3, 3).double(), 2, 1.0),
        (torch.ones(1, 3, 3), 0, 1.0),
        (torch.ones(1, 3, 3), MAX_DEGREE + 2, 1.0),
        (torch.ones(1, 3, 3), 2, 0.0),
    ],
)
def test_refuses(matrix: torch.Tensor, count: int, bound: float) -> None:
    with pytest.raises(KernelInputError, match="expected"):
        odd_polynomial(matrix, [1.0] * count, bound)

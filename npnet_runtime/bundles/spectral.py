"""The polynomial that stands for the singular value decomposition in a bundle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from npnet_kernels.linalg.matrix_polynomial import MAX_DEGREE


@dataclass(frozen=True)
class SpectralPolynomial:
    """`U diag(f) Vh` as `M p(M^T M)`, fitted when the bundle was made.

    Args:
        coefficients: of p in Chebyshev polynomials of `2 x / bound^2 - 1`.
        bound: end of the interval of singular values, 0 its beginning.
        frobenius: smallest and largest Frobenius norm of a noise's matrix it holds for.
        schatten8: the same of the Schatten norm 8, which is no smaller than the largest singular value.
        rms: RMS of the error over all noises measured, relative to the noise's.
        worst: of the worst noise.
        floor: `worst` of the mean f by index, which no polynomial can be expected to beat by much.
        tolerance: what `worst` was allowed to be.
        fit_seeds: first and last seed of the noises it was fitted to.
        test_seeds: of those it was measured on.
    """

    coefficients: tuple[float, ...]
    bound: float
    frobenius: tuple[float, float]
    schatten8: tuple[float, float]
    rms: float
    worst: float
    floor: float
    tolerance: float
    fit_seeds: tuple[int, int]
    test_seeds: tuple[int, int]

    @property
    def degree(self) -> int:
        """Of the odd polynomial in the singular values."""
        return 2 * len(self.coefficients) - 1

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From JSON.

        Raises:
            TypeError: a field is missing, unknown or no number, or the numbers make no polynomial.
        """
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        found = cls(**given)
        pairs = (found.frobenius, found.schatten8, found.fit_seeds, found.test_seeds)
        numbers = [found.bound, found.rms, found.worst, found.floor, found.tolerance, *found.coefficients]
        numbers += [number for pair in pairs for number in pair]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise TypeError("spectral: expected finite numbers")
        if any(len(pair) != 2 for pair in pairs) or found.bound <= 0:
            raise TypeError("spectral: expected pairs and a positive bound")
        if not 1 <= len(found.coefficients) <= MAX_DEGREE + 1 or found.schatten8[1] > found.bound:
            raise TypeError(
                f"spectral: expected 1 to {MAX_DEGREE + 1} coefficients, and norms up to the bound"
            )
        return found

    def __str__(self) -> str:
        return (
            f"polynomial of degree {self.degree}, no SVD: worst error {self.worst:.2g} of the noise's rms "
            f"(rms {self.rms:.2g}, tolerance {self.tolerance:g}) on the seeds "
            f"{self.test_seeds[0]}-{self.test_seeds[1]} at export"
        )

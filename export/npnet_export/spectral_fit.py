"""Can a polynomial stand for the SVD? Fitted to noises drawn here, measured on others."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from npnet_export.errors import ExportError
from npnet_kernels import latent_to_matrix, svd
from npnet_kernels.linalg.matrix_polynomial import MAX_DEGREE, odd_polynomial
from npnet_runtime.bundles.spectral import SpectralPolynomial
from npnet_runtime.networks.npnet import NPNet

# Largest error of the worst noise, relative to the noise's rms. fp16 and bf16: half of what parity allows the
# whole engine. fp32: its 5e-5 is the largest of 65,536 errors, about 4.5 of their standard deviations.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 5e-3}
SPECTRAL = ("exact", "polynomial", "auto")
FIT_SEEDS, TEST_SEEDS = (10_000, 10_031), (20_000, 20_015)
HEADROOM = 0.9  # of the tolerance, for noises that were not measured
_MARGIN = 0.15  # of the norms: the Frobenius norm of a 32 x 32 noise has a standard deviation of 2.2 %
_ANCHORS, _ANCHOR_WEIGHT = 32, 0.02


def fit(network: NPNet, precision: str, tolerance: float | None = None) -> SpectralPolynomial:
    """The polynomial of the smallest degree within the tolerance.

    Args:
        network: float32, on the CPU.
        precision: of the engine.
        tolerance: of the worst noise; None for that of `TOLERANCES`.

    Raises:
        ExportError: there is none; the message says the smallest error found.
    """
    allowed = TOLERANCES[precision] if tolerance is None else tolerance
    _, s, f, norms = _draw(network, FIT_SEEDS)
    matrix, _, f_test, _ = tested = _draw(network, TEST_SEEDS)
    low, high = norms.amin(0) * (1 - _MARGIN), norms.amax(0) * (1 + _MARGIN)
    bound = float(high[1])
    floor = float(_relative(f_test - f.mean(0), matrix).max())
    best: SpectralPolynomial | None = None
    for degree in range(1, MAX_DEGREE + 1):
        coefficients = _least_squares(s, f, bound, degree)
        errors = _errors(tested, coefficients, bound)
        found = SpectralPolynomial(
            coefficients,
            bound,
            (float(low[0]), float(high[0])),
            (float(low[1]), bound),
            float(errors.square().mean().sqrt()),
            float(errors.max()),
            floor,
            allowed,
            FIT_SEEDS,
            TEST_SEEDS,
        )
        if found.worst <= HEADROOM * allowed:
            return found
        if math.isfinite(found.worst) and (best is None or found.worst < best.worst):
            best = found
    measured = "no finite one" if best is None else f"{best.worst:.3g} at degree {best.degree}"
    raise ExportError(
        f"--spectral polynomial: smallest error of the worst noise {measured}, expected at most "
        f"{HEADROOM * allowed:.3g} (the tolerance {allowed:g} of {precision} with headroom; the mean "
        f"correction errs by {floor:.3g}); use --spectral exact, another --precision, or allow more with "
        f"--spectral-tolerance"
    )


def _draw(network: NPNet, seeds: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matrices, their singular values, corrections and norms (Schatten 2 and 8), float64 but the first."""
    shape = network.config.latent_shape
    noise = torch.stack(
        [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            for seed in range(seeds[0], seeds[1] + 1)
        ]
    )
    matrix = latent_to_matrix(noise)
    with torch.inference_mode():
        # one by one: the same corrections whatever the number of noises
        factors = [svd(one[None], solver="lapack") for one in matrix]
        f = torch.cat([network.spectral_head(*each) for each in factors]).double()
    s = torch.cat([each.s for each in factors]).double()
    return matrix, s, f, torch.stack([s.square().sum(1).sqrt(), (s**8).sum(1) ** 0.125], 1)


def _least_squares(s: Tensor, f: Tensor, bound: float, degree: int) -> tuple[float, ...]:
    def basis(values: np.ndarray) -> np.ndarray:
        return chebyshev.chebvander(2 * (values / bound) ** 2 - 1, degree) * values[:, None]

    # Between the largest value met and the bound, f goes on as at its end: no wild extrapolation.
    anchors = np.linspace(float(s.max()), bound, _ANCHORS)
    weight = _ANCHOR_WEIGHT * math.sqrt(s.numel() / _ANCHORS)
    points = np.concatenate([basis(s.flatten().numpy()), weight * basis(anchors)])
    values = np.concatenate([f.flatten().numpy(), np.full(_ANCHORS, weight * float(f[:, 0].mean()))])
    return tuple(np.linalg.lstsq(points, values, rcond=None)[0].tolist())


def _errors(
    tested: tuple[Tensor, Tensor, Tensor, Tensor],
    coefficients: tuple[float, ...],
    bound: float,
) -> Tensor:
    """What runs, in float32, against `U diag(f) Vh`: relative error of each noise."""
    matrix, _, f, _ = tested
    found = []
    for one, correction in zip(matrix, f, strict=True):
        u, _, vh = svd(one, solver="lapack")
        given, _ = odd_polynomial(one[None], coefficients, bound)
        error = given[0].double() - (u.double() * correction) @ vh.double()
        found.append(error.square().mean().sqrt() / one.double().square().mean().sqrt())
    return torch.stack(found)


def _relative(error: Tensor, matrix: Tensor) -> Tensor:
    """Of errors of singular values: their norm is that of the matrices' difference."""
    return (error.square().sum(1) / matrix.double().square().sum((1, 2))).sqrt()

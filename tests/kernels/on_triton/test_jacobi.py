"""The Jacobi kernels: vectors that the tail turns into certified factors, and when they stop."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from npnet_kernels.linalg import jacobi_launch
from npnet_kernels.linalg.jacobi import jacobi_vectors_reference
from npnet_kernels.linalg.jacobi_launch import Tiling, jacobi_vectors
from npnet_kernels.linalg.refinement import TOLERANCE, refine
from npnet_kernels.linalg.scaling import normalise
from npnet_kernels.linalg.schedule import Schedule, schedule_for

Draw = Callable[..., torch.Tensor]


class Tolerance(NamedTuple):
    value: float
    reason: str


TOLERANCES = {
    "orthogonality": Tolerance(1e-3, "a clean-up squares the drift of 1 %, four iterations add 2e-6 each"),
    "alignment": Tolerance(1e-4, "half the square of an angle left by float32 rounding and a small gap"),
}


def scaled(matrix: torch.Tensor, device: torch.device) -> torch.Tensor:
    return normalise(matrix)[0].float().to(device)


def certificate(matrix: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return refine(matrix.double(), v.double()).residual


@pytest.mark.parametrize("n", [16, 33])
def test_certified(n: int, device: torch.device, gaussian: Draw) -> None:
    matrix = scaled(gaussian(2, n, n), device)
    v = jacobi_vectors(matrix)
    eye = torch.eye(n, device=device)
    assert (v.mT @ v - eye).abs().amax() <= TOLERANCES["orthogonality"].value
    assert (certificate(matrix, v) <= TOLERANCE).all()


@pytest.mark.parametrize("n", [64, 96, 256, 512])
def test_certified_at_larger_sizes(n: int, device: torch.device, full_size: bool, gaussian: Draw) -> None:
    if not full_size and n > 64:
        pytest.skip("minutes in the interpreter")
    for batch in (1, 16) if full_size else (1,):
        matrix = scaled(gaussian(batch, n, n), device)
        assert (certificate(matrix, jacobi_vectors(matrix)) <= TOLERANCE).all()


def test_same_vectors_as_the_reference(device: torch.device, gaussian: Draw) -> None:
    matrix = scaled(gaussian(1, 24, 24), device)
    ours = jacobi_vectors(matrix)[0].cpu()
    theirs = jacobi_vectors_reference(matrix[0].cpu())
    products = (ours.mT @ theirs).abs()
    assert (products.amax(0) >= 1 - TOLERANCES["alignment"].value).all()


@pytest.mark.parametrize("block", [16, 64])
def test_any_tiling(
    block: int, device: torch.device, gaussian: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jacobi_launch, "choose_tiling", lambda batch: Tiling(block, 16))
    matrix = scaled(gaussian(2, 21, 21), device)
    assert (certificate(matrix, jacobi_vectors(matrix)) <= TOLERANCE).all()


def test_converged_matrices_stay_as_they_are(device: torch.device, gaussian: Draw) -> None:
    matrix = scaled(gaussian(2, 16, 16), device)
    plan = schedule_for(16)
    results = [
        jacobi_vectors(matrix, Schedule(plan.step, plan.coarse, fine=fine))
        for fine in (plan.fine, plan.fine + 5)
    ]
    assert torch.equal(*results)


def test_independent_of_neighbours(device: torch.device, gaussian: Draw) -> None:
    matrix = torch.stack([gaussian(16, 16), torch.eye(16), torch.zeros(16, 16), gaussian(16, 16, seed=9)])
    matrix = scaled(matrix, device)
    together = jacobi_vectors(matrix)
    alone = torch.cat([jacobi_vectors(single[None]) for single in matrix])
    assert torch.equal(together, alone)


def test_nan_stays_in_its_matrix(device: torch.device, gaussian: Draw) -> None:
    matrix = scaled(gaussian(2, 16, 16), device)
    matrix[1, 2, 3] = torch.nan
    residual = certificate(matrix, jacobi_vectors(matrix))
    assert residual[0] <= TOLERANCE
    assert residual[1] == torch.inf


def test_a_schedule_too_short_is_not_certified(device: torch.device, gaussian: Draw) -> None:
    matrix = scaled(gaussian(1, 32, 32), device)
    v = jacobi_vectors(matrix, Schedule(step=1.0, coarse=2, fine=1))
    assert (certificate(matrix, v) > TOLERANCE).all()

"""The Jacobi kernels: vectors that the tail turns into certified factors, and when they stop."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from npnet_kernels.linalg.driver import Driver
from npnet_kernels.linalg.jacobi import jacobi_vectors_reference, tf32_product
from npnet_kernels.linalg.jacobi_launch import Tiling, jacobi_vectors
from npnet_kernels.linalg.refinement import TOLERANCE, finish, refine
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
    return finish(refine(matrix.double(), v)).residual


@pytest.mark.parametrize("n", [16, 33])
def test_certified(n: int, device: torch.device, gaussian: Draw) -> None:
    matrix = scaled(gaussian(2, n, n), device)
    v = jacobi_vectors(matrix)
    eye = torch.eye(n, dtype=torch.float64, device=device)
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
    theirs = jacobi_vectors_reference(matrix[0].cpu(), coarse_product=tf32_product).double()
    products = (ours.mT @ theirs).abs()
    assert (products.amax(0) >= 1 - TOLERANCES["alignment"].value).all()


def test_coarse_operands_are_rounded(device: torch.device, gaussian: Draw) -> None:
    """One coarse iteration is the reference's with rounded operands, and 1.6e-3 from the one without.

    What is left are operands that the order of a sum moves over the middle between two TF32 numbers.
    """
    matrix = scaled(gaussian(1, 24, 24), device)
    plan = Schedule(step=schedule_for(24).step, coarse=1, fine=0)
    ours = jacobi_vectors(matrix, plan)[0].float().cpu()
    matrix = matrix.cpu()
    rounded = jacobi_vectors_reference(matrix[0], plan, coarse_product=tf32_product)
    exact = jacobi_vectors_reference(matrix[0], plan)
    assert (ours - rounded).abs().max() < 0.2 * (exact - rounded).abs().max()


@pytest.mark.parametrize("block", [16, 64])
def test_any_tiling(block: int, device: torch.device, gaussian: Draw) -> None:
    matrix = scaled(gaussian(2, 21, 21), device)
    v = jacobi_vectors(matrix, tiling=Tiling(block, 16), driver="phases")
    assert (certificate(matrix, v) <= TOLERANCE).all()


@pytest.mark.parametrize("fine", [0, 1, 4])
def test_drivers_give_the_same_bits(fine: int, device: torch.device, gaussian: Draw) -> None:
    """Stopped at either buffer, with several tiles, and a matrix that is done long before the other."""
    matrix = scaled(torch.stack([gaussian(18, 18), torch.zeros(18, 18)]), device)
    plan = Schedule(step=schedule_for(18).step, coarse=3, fine=fine, clean_every=2)
    drivers: tuple[Driver, ...] = ("phases", "persistent")
    phases, persistent = (
        jacobi_vectors(matrix, plan, driver=driver, tiling=Tiling(16, 16)) for driver in drivers
    )
    assert torch.equal(phases, persistent)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_drivers_give_the_same_bits_with_a_full_grid(
    batch: int, device: torch.device, full_size: bool, gaussian: Draw
) -> None:
    """Many programs meet at the barriers, again and again with the same buffers: a stale read would show."""
    if not full_size:
        pytest.skip("the interpreter has one program")
    matrix = scaled(gaussian(batch, 256, 256), device)
    phases = jacobi_vectors(matrix, driver="phases")
    for _ in range(20):
        assert torch.equal(phases, jacobi_vectors(matrix, driver="persistent"))


def test_persistent_driver_ends_early(
    device: torch.device, gaussian: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a thousand iterations allowed and room for the flags of all: rows of later ones stay unwritten."""
    matrix = scaled(gaussian(2, 16, 16), device)
    written: list[torch.Tensor] = []
    empty = torch.empty

    def remembered(*shape: object, **options: object) -> torch.Tensor:
        buffer = empty(*shape, **options)  # type: ignore[call-overload]
        if buffer.dtype == torch.int32 and buffer.dim() == 2:
            written.append(buffer.fill_(-1))
        return buffer

    monkeypatch.setattr(torch, "empty", remembered)
    plan = schedule_for(16)
    v = jacobi_vectors(matrix, Schedule(plan.step, plan.coarse, fine=1000), driver="persistent")
    (done,) = written
    iterations = int((done != -1).all(1).sum())
    assert plan.coarse + 1 < iterations < plan.coarse + 12
    assert (done[iterations - 1] == 1).all()
    assert (certificate(matrix, v) <= TOLERANCE).all()


def test_nan_does_not_hold_up_its_neighbours(device: torch.device, gaussian: Draw) -> None:
    matrix = scaled(gaussian(2, 16, 16), device)
    matrix[1, 2, 3] = torch.nan
    residual = certificate(matrix, jacobi_vectors(matrix, driver="persistent"))
    assert residual[0] <= TOLERANCE
    assert residual[1] == torch.inf


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

"""The entrywise kernels of the tail against their reference, and the tail made of them."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from npnet_kernels.linalg import signs
from npnet_kernels.linalg.refinement import TOLERANCE, finish, refine
from npnet_kernels.linalg.scaling import normalise, normalise_by_kernels
from npnet_kernels.linalg.tail import Entrywise, EntrywiseReference, Finished
from npnet_kernels.linalg.tail_launch import EntrywiseKernels

Draw = Callable[..., torch.Tensor]


class Tolerance(NamedTuple):
    value: float
    reason: str


SAME = Tolerance(1e-13, "the same float64 formulas; fused multiplications may round the last bits otherwise")


def problem(draw: Draw, n: int, error: float, device: torch.device) -> dict[str, torch.Tensor]:
    """A matrix and factors that are wrong by about `error`."""
    matrix = draw(2, n, n).double()
    u, s, vh = torch.linalg.svd(matrix)
    u = u + error * draw(2, n, n, seed=1).double() / n**0.5
    v = vh.mT + error * draw(2, n, n, seed=2).double() / n**0.5
    return {name: x.to(device) for name, x in {"matrix": matrix, "u": u, "s": s, "v": v}.items()}


def solve(
    matrix: torch.Tensor, v: torch.Tensor, entrywise: Entrywise, poison: float | None = None
) -> Finished:
    return finish(refine(matrix, v, entrywise=entrywise), poison=poison, entrywise=entrywise)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=SAME.value, atol=SAME.value, equal_nan=True)


@pytest.mark.parametrize("n", [16, 33, 70])
def test_same_as_the_reference(n: int, device: torch.device, gaussian: Draw) -> None:
    p = problem(gaussian, n, 1e-3, device)
    x = torch.stack((p["u"], p["v"], p["matrix"] @ p["v"]))
    grams, t = x[:2].mT @ x[:2], x[0].mT @ x[2]
    ours, theirs = EntrywiseKernels(), EntrywiseReference()
    assert_same(ours.weighted_change(grams[0], p["s"]), theirs.weighted_change(grams[0], p["s"]))
    rotations, expected = ours.rotations(t, grams), theirs.rotations(t, grams)
    assert_same(rotations.change, expected.change)
    assert_same(rotations.s, expected.s)
    assert torch.equal(rotations.settled.amin(-1), expected.settled)
    assert_same(ours.worst_entry(grams, x, p["s"]).amax(-1), theirs.worst_entry(grams, x, p["s"]))


@pytest.mark.parametrize("n", [16, 33, 70])
def test_sorted_as_by_the_reference(n: int, device: torch.device, gaussian: Draw) -> None:
    """Columns in any order, with equal norms, zeros and NaN among them."""
    mv, v = gaussian(3, n, n).double().to(device), gaussian(3, n, n, seed=1).double().to(device)
    mv[0, :, 5] = mv[0, :, 2]
    mv[1, :, [3, 4]] = 0
    mv[2, 1, [0, 7]] = torch.nan
    for ours, theirs in zip(
        EntrywiseKernels().left_vectors(mv, v), EntrywiseReference().left_vectors(mv, v), strict=True
    ):
        assert_same(ours, theirs)


@pytest.mark.parametrize("n", [16, 33, 70])
def test_finished_as_by_the_reference(n: int, device: torch.device, gaussian: Draw) -> None:
    """Negative values turned, those out of order sorted, float32 factors, NaN where it is due."""
    x = gaussian(3, 4, n, n).double().to(device)
    s = torch.linspace(3, -0.1, n, dtype=torch.float64, device=device).repeat(4, 1)
    s[0, [3, 4]] = s[0, [4, 3]]
    s[1, 6] = s[1, 7]
    worst = torch.tensor([1e-7, torch.inf, 1e-5, 1e-7], dtype=torch.float64, device=device)
    settled = torch.tensor([1, 1, 1, 0], dtype=torch.int32, device=device)
    scale = torch.tensor([1.0, 2.0, 0.25, 4.0], dtype=torch.float64, device=device)
    for poison in (None, TOLERANCE):
        ours = EntrywiseKernels().finish(x, s, worst[:, None], settled[:, None], scale, poison)
        theirs = EntrywiseReference().finish(x, s, worst, settled, scale, poison)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert ours.u.isnan().flatten(1).any(1).tolist() == [False] + 3 * [poison is not None]


@pytest.mark.parametrize("tile", [0, 1, 3])
def test_one_bad_tile_is_enough(tile: int, device: torch.device, gaussian: Draw) -> None:
    x, s = gaussian(3, 1, 33, 33).double().to(device), gaussian(1, 33).double().to(device)
    scale = torch.ones(1, dtype=torch.float64, device=device)
    fine, settled = torch.zeros(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.int32)
    worst, unsettled = fine.clone(), settled.clone()
    worst[0, tile], unsettled[0, tile] = torch.inf, 0
    kernels = EntrywiseKernels()
    for a, b in ((worst, settled), (fine, unsettled)):
        finished = kernels.finish(x, s, a.to(device), b.to(device), scale, TOLERANCE)
        assert finished.residual.item() == torch.inf
        assert finished.vh.isnan().all()


@pytest.mark.parametrize("part", range(3))
def test_nan_anywhere_is_the_worst_entry(part: int, device: torch.device, gaussian: Draw) -> None:
    x, s = gaussian(3, 1, 33, 33).double().to(device), gaussian(1, 33).double().to(device)
    grams = x[:2].mT @ x[:2]
    clean = EntrywiseKernels().worst_entry(grams, x, s).amax()
    assert clean.isfinite()
    if part == 2:
        s[0, 5] = torch.nan
    else:
        (grams if part else x[2:])[0, 0, 32, 1] = torch.nan
    for entrywise in (EntrywiseKernels(), EntrywiseReference()):
        assert entrywise.worst_entry(grams, x, s).amax() == torch.inf


@pytest.mark.parametrize("n", [17, 64])
def test_refines(n: int, device: torch.device, gaussian: Draw) -> None:
    p = problem(gaussian, n, 1e-4, device)
    finished = solve(p["matrix"], p["v"], EntrywiseKernels())
    assert (finished.residual <= TOLERANCE).all()
    torch.testing.assert_close(finished.s.double(), p["s"], rtol=1e-7, atol=1e-7)


def test_pairs_out_of_reach_are_not_settled(device: torch.device, gaussian: Draw) -> None:
    p = problem(gaussian, 32, 0.5, device)
    for entrywise in (EntrywiseKernels(), EntrywiseReference()):
        assert (solve(p["matrix"], p["v"], entrywise).residual == torch.inf).all()


def test_nan_gives_infinity_in_its_matrix(device: torch.device, gaussian: Draw) -> None:
    p = problem(gaussian, 32, 1e-6, device)
    p["v"][1, 3, 4] = torch.nan
    for entrywise in (EntrywiseKernels(), EntrywiseReference()):
        finished = solve(p["matrix"], p["v"], entrywise, TOLERANCE)
        assert finished.residual[0] <= TOLERANCE
        assert finished.residual[1] == torch.inf
        for x in finished[:3]:
            assert x[0].isfinite().all()
            assert x[1].isnan().all()


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 50, 61), (1, 1, 3)])
def test_scaled_as_by_the_reference(shape: tuple[int, ...], device: torch.device, gaussian: Draw) -> None:
    matrix = gaussian(*shape).to(device)
    for factor in (1.0, 1e-20, 3e38, 1e-45, 0.0, torch.inf, torch.nan):
        one = matrix.clone()
        one[0] = (one[0] / one[0].abs().amax()) * factor
        assert_equal(normalise_by_kernels(one), normalise(one.cpu()))
    assert_equal(normalise_by_kernels(matrix.mT), normalise(matrix.mT.cpu()))


def assert_equal(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 20, 7), (3, 9, 70)])
def test_signs_as_by_the_reference(shape: tuple[int, ...], device: torch.device, gaussian: Draw) -> None:
    batch, rows, columns = shape
    k = min(rows, columns)
    u, vh = gaussian(batch, rows, k).to(device), gaussian(batch, k, columns, seed=1).to(device)
    vh[0, 1], vh[0, 2, 0] = 0, torch.nan
    ours = signs.flip_by_kernel(u, vh, torch.tensor(signs.reference_draws(columns)).double().to(device))
    assert_equal(ours, signs.canonical_signs(u.cpu(), vh.cpu()))
    assert not torch.equal(ours[0], u)


def test_clusters_keep_their_basis(device: torch.device, gaussian: Draw) -> None:
    q, _ = torch.linalg.qr(gaussian(2, 24, 24).double())
    matrix = (q * torch.tensor([3.0] * 10 + [1.0] * 14, dtype=torch.float64)).to(device)
    v = torch.eye(24, dtype=torch.float64, device=device).expand(2, 24, 24)
    assert (solve(matrix, v, EntrywiseKernels()).residual <= 1e-12).all()

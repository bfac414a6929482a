"""The entrywise kernels of the tail against their reference, and the tail made of them."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from npnet_kernels.linalg.refinement import TOLERANCE, refine
from npnet_kernels.linalg.rotation_launch import EntrywiseKernels
from npnet_kernels.linalg.rotations import EntrywiseReference

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


@pytest.mark.parametrize("n", [16, 33, 70])
def test_same_as_the_reference(n: int, device: torch.device, gaussian: Draw) -> None:
    p = problem(gaussian, n, 1e-3, device)
    gram_u, gram_v, mv = p["u"].mT @ p["u"], p["v"].mT @ p["v"], p["matrix"] @ p["v"]
    ours, theirs = EntrywiseKernels(), EntrywiseReference()
    close = {"rtol": SAME.value, "atol": SAME.value}
    torch.testing.assert_close(
        ours.weighted_defect(gram_u, p["s"]), theirs.weighted_defect(gram_u, p["s"]), **close
    )
    t = p["u"].mT @ mv
    for a, b in zip(ours.rotations(t, gram_u, gram_v), theirs.rotations(t, gram_u, gram_v), strict=True):
        torch.testing.assert_close(a, b, **close)
    arguments = (gram_u, gram_v, mv, p["u"], p["s"])
    torch.testing.assert_close(ours.worst_entry(*arguments), theirs.worst_entry(*arguments), **close)


@pytest.mark.parametrize("n", [17, 64])
def test_refines(n: int, device: torch.device, gaussian: Draw) -> None:
    p = problem(gaussian, n, 1e-4, device)
    refined = refine(p["matrix"], p["v"], entrywise=EntrywiseKernels())
    assert (refined.residual <= TOLERANCE).all()
    torch.testing.assert_close(refined.s, p["s"], rtol=1e-10, atol=1e-10)


def test_pairs_out_of_reach_are_not_settled(device: torch.device, gaussian: Draw) -> None:
    p = problem(gaussian, 32, 0.5, device)
    for entrywise in (EntrywiseKernels(), EntrywiseReference()):
        refined = refine(p["matrix"], p["v"], entrywise=entrywise)
        assert (refined.residual == torch.inf).all()


def test_nan_gives_infinity_in_its_matrix(device: torch.device, gaussian: Draw) -> None:
    p = problem(gaussian, 32, 1e-6, device)
    p["v"][1, 3, 4] = torch.nan
    for entrywise in (EntrywiseKernels(), EntrywiseReference()):
        residual = refine(p["matrix"], p["v"], entrywise=entrywise).residual
        assert residual[0] <= TOLERANCE
        assert residual[1] == torch.inf


def test_clusters_keep_their_basis(device: torch.device, gaussian: Draw) -> None:
    q, _ = torch.linalg.qr(gaussian(2, 24, 24).double())
    matrix = (q * torch.tensor([3.0] * 10 + [1.0] * 14, dtype=torch.float64)).to(device)
    v = torch.eye(24, dtype=torch.float64, device=device).expand(2, 24, 24)
    refined = refine(matrix, v, entrywise=EntrywiseKernels())
    assert (refined.residual <= 1e-12).all()

"""The residual map's kernel against float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from npnet_kernels.features.reference import residual_map_reference
from npnet_kernels.features.residual_map import residual_map

Draw = Callable[..., torch.Tensor]


class Tolerance(NamedTuple):
    value: float
    reason: str


TOLERANCE = Tolerance(1e-5, "relative to the largest: float32 throughout, from rows of whatever dtype")


class Case(NamedTuple):
    batch: int
    side: int
    width: int
    channels: int
    columns: int


CASES = [Case(2, 7, 24, 4, 20), Case(1, 4, 16, 16, 8), Case(3, 1, 5, 1, 33), Case(1, 16, 300, 2, 7)]


def operands(draw: Draw, case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    tokens = case.side**2
    return {
        "x": (3 * draw(case.batch, tokens, case.width) + draw(case.batch, tokens, 1, seed=7)).to(dtype),
        "index": torch.randperm(tokens, generator=generator).int(),
        "norm": (1 + 0.1 * draw(case.width, seed=2), 0.1 * draw(case.width, seed=3)),
        "column_index": torch.randint(case.width, (case.columns,), generator=generator).int(),
        "weight": draw(case.channels, case.side, seed=4),
        "bias": draw(case.channels, seed=5),
    }


def move(given: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: tuple(x.to(device) for x in value) if isinstance(value, tuple) else value.to(device)
        for name, value in given.items()
    }


def check(given: dict[str, Any], backend: Any = "triton") -> None:
    def wide(x: torch.Tensor) -> torch.Tensor:
        return x.cpu().double() if x.is_floating_point() else x.cpu()

    exact = residual_map_reference(
        wide(given["x"]), given["index"].cpu(), *(wide(x) for x in given["norm"]),
        given["column_index"].cpu(), wide(given["weight"]), wide(given["bias"]), 1e-5,
    )  # fmt: skip
    result = residual_map(**given, backend=backend)
    assert result.dtype == torch.float32
    assert (result.cpu().double() - exact).abs().max() <= TOLERANCE.value * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_against_double(case: Case, dtype: torch.dtype, device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, case, dtype), device)
    check(given)
    check(given, "torch")


def test_strided_operands(device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES[0]), device)
    for name in ("x", "weight"):
        given[name] = given[name].mT.contiguous().mT
    check(given)


def test_an_image_does_not_depend_on_its_batch(device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES[0]), device)
    together = residual_map(**given, backend="triton")
    alone = residual_map(**{**given, "x": given["x"][1:]}, backend="triton")
    assert torch.equal(together[1:], alone)


def test_nan_stays_in_its_column(device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES[0]), device)
    token = 3 * 7 + 5  # row 3, column 5 of the map
    given["x"][1, given["index"][token].item(), 0] = torch.nan
    result = residual_map(**given, backend="triton")
    assert result[1, :, 5].isnan().all()
    result[1, :, 5] = 0
    assert result.isfinite().all()


def test_empty_batch(device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES[0]), device)
    assert residual_map(**{**given, "x": given["x"][:0]}, backend="triton").shape == (0, 4, 7, 20)

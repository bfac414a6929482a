"""The fused linear kernel against float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from npnet_kernels.linear.fused_linear import fused_linear
from npnet_kernels.linear.launch import Tiling, choose_tiling
from npnet_kernels.linear.reference import fused_linear_reference

Draw = Callable[..., torch.Tensor]


class Tolerance(NamedTuple):
    value: float
    reason: str


TOLERANCES = {
    torch.float32: Tolerance(1e-5, "three TF32 products keep 2e-7 a term of a few hundred"),
    torch.float16: Tolerance(2e-3, "normalised rows and the result round at 5e-4"),
    torch.bfloat16: Tolerance(2e-2, "as float16, at 4e-3"),
}


class Case(NamedTuple):
    batch: int
    tokens: int
    width: int
    columns: int
    pieces: int = 1
    norm: bool = False
    bias: bool = True
    gelu: bool = False
    residual: str = ""


CASES = {
    "plain": Case(2, 5, 7, 9),
    "no bias": Case(1, 33, 64, 40, bias=False),
    "projection": Case(2, 49, 24, 24, residual="indexed"),
    "first of the MLP": Case(2, 20, 48, 96, norm=True, gelu=True),
    "second of the MLP": Case(1, 20, 96, 48, residual="beside"),
    "merging": Case(2, 16, 24, 48, pieces=4, norm=True, bias=False),
    "all at once": Case(3, 12, 37, 19, pieces=2, norm=True, gelu=True, residual="indexed"),
    "one value a row": Case(4, 3, 1, 1),
}


def operands(draw: Draw, case: Case, dtype: torch.dtype) -> dict[str, Any]:
    terms = case.pieces * case.width
    generator = torch.Generator().manual_seed(3)
    x = 2 * draw(case.batch, case.tokens, case.width) + draw(case.batch, case.tokens, 1, seed=8)
    given: dict[str, Any] = {
        "x": x.to(dtype),
        "weight": (draw(case.columns, terms, seed=1) / terms**0.5).to(dtype),
        "bias": draw(case.columns, seed=2) if case.bias else None,
        "norm": (1 + 0.1 * draw(terms, seed=4), 0.1 * draw(terms, seed=5)) if case.norm else None,
        "gelu": case.gelu,
    }
    tokens = case.tokens
    if case.pieces > 1:
        given["index"] = torch.randperm(case.tokens, generator=generator).int()
        tokens = case.tokens // case.pieces
    if case.residual:
        given["residual"] = draw(case.batch, tokens, case.columns, seed=6).to(dtype)
    if case.residual == "indexed":
        given["residual_index"] = torch.randperm(tokens, generator=generator).int()
    return given


def move(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, dict):
        return {name: move(item, change) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(move(item, change) for item in value)
    return change(value) if isinstance(value, torch.Tensor) else value


def double(given: dict[str, Any]) -> torch.Tensor:
    wide = move(given, lambda x: x.cpu().double() if x.is_floating_point() else x.cpu())
    norm = wide.get("norm") or (None, None)
    return fused_linear_reference(
        wide["x"], wide["weight"], wide["bias"], *norm, wide.get("index"), wide.get("residual"),
        wide.get("residual_index"), wide["gelu"], 1e-5,
    )  # fmt: skip


def close(result: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    assert result.dtype == dtype
    error = (result.cpu().double() - exact).abs().max() / exact.abs().max().clamp(min=1)
    assert error <= TOLERANCES[dtype].value, float(error)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", CASES)
def test_against_double(name: str, dtype: torch.dtype, device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES[name], dtype), lambda x: x.to(device))
    for backend in ("triton", "torch"):
        close(fused_linear(**given, backend=backend), double(given), dtype)


@pytest.mark.parametrize("name", ["merging", "projection"])
def test_strided_operands(name: str, device: torch.device, gaussian: Draw) -> None:
    def strided(x: torch.Tensor) -> torch.Tensor:
        return x.mT.contiguous().mT if x.dim() > 1 else x

    given = move(operands(gaussian, CASES[name], torch.float32), lambda x: strided(x.to(device)))
    assert not given["x"].is_contiguous()
    close(fused_linear(**given, backend="triton"), double(given), torch.float32)


def test_wide_rows(device: torch.device, gaussian: Draw) -> None:
    """Statistics of many blocks; and a row whose values are all the same has none but eps."""
    given = operands(gaussian, Case(1, 3, 1000, 20, norm=True), torch.float32)
    given["x"][0, 1] = 5.0
    given = move(given, lambda x: x.to(device))
    close(fused_linear(**given, backend="triton"), double(given), torch.float32)


def test_a_large_mean_is_not_cancelled(device: torch.device, gaussian: Draw) -> None:
    """Rows of deviation 1 about 1,000, which float32 holds to 6e-5 of the deviation, and no worse."""
    given = operands(gaussian, Case(1, 4, 300, 20, norm=True), torch.float32)
    given["x"] = gaussian(1, 4, 300, seed=7) + 1000.0
    result = fused_linear(**move(given, lambda x: x.to(device)), backend="triton")
    assert (result.cpu().double() - double(given)).abs().max() < 5e-4


def test_a_row_does_not_depend_on_the_batch(device: torch.device, gaussian: Draw) -> None:
    """On a device to the last bit, also where a larger batch has wider tiles."""
    given = move(
        operands(gaussian, Case(40, 49, 64, 200, norm=True, gelu=True), torch.float16), lambda x: x.to(device)
    )
    if device.type == "cpu":
        given["x"] = given["x"][:3]
    together = fused_linear(**given, backend="triton")
    alone = fused_linear(**{**given, "x": given["x"][:1]}, backend="triton")
    # NumPy's matrix product, which the interpreter uses, depends on a row's place; tensor cores do not.
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=2e-3 if device.type == "cpu" else 0)


def test_tiles_are_wide_where_there_are_enough() -> None:
    def tiling(rows: int, columns: int, width: int = 384, dtype: torch.dtype = torch.float16) -> Tiling:
        return choose_tiling(rows, columns, width, dtype)

    assert tiling(3136, 384).block_n == 128
    assert tiling(49, 768).block_n == 16
    assert tiling(64 * 49, 768).block_n == 128
    assert tiling(10**6, 8).block_n == 16
    assert {tiling(49 * batch, 768).block_k for batch in (1, 2, 16, 64)} == {64}
    assert tiling(49, 96, 96).block_k == tiling(49, 768, dtype=torch.float32).block_k == 32


def test_nan_stays_in_its_row(device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES["first of the MLP"], torch.float32), lambda x: x.to(device))
    given["x"][1, 3, 5] = torch.nan
    result = fused_linear(**given, backend="triton")
    assert result[1, 3].isnan().all()
    result[1, 3] = 0
    assert result.isfinite().all()


def test_empty_batch(device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES["merging"], torch.float32), lambda x: x.to(device))
    given["x"] = given["x"][:0]
    assert fused_linear(**given, backend="triton").shape == (0, 4, 48)

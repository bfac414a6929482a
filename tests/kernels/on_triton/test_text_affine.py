"""The text affine kernels against float64."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from npnet_kernels import text_affine
from npnet_kernels.backends import Backend

Draw = Callable[..., torch.Tensor]


class Tolerance(NamedTuple):
    value: float
    reason: str


TOLERANCE = Tolerance(
    1e-6,
    "relative to sum |x w|: blocks of 256 terms in float32, each addition rounds at 6e-8; interpreted 9e-8",
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 7, 96, 8), (3, 5, 123, 8), (17, 3, 171, 32), (33, 1, 1, 2), (2, 11, 301, 18)]


def check(
    prompt: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, backend: Backend = "triton"
) -> None:
    result = text_affine(prompt, weight, bias, backend=backend)
    x, w, b = prompt.double().cpu().flatten(1), weight.double().cpu(), bias.double().cpu()
    assert result.dtype == torch.float32
    error = (result.cpu().double() - (x @ w.mT + b)).abs()
    assert (error <= TOLERANCE.value * (x.abs() @ w.abs().mT + b.abs())).all()


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_double(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    device: torch.device,
    gaussian: Draw,
) -> None:
    batch, tokens, dim, outputs = shape
    prompt = gaussian(batch, tokens, dim, dtype=dtype).to(device)
    weight = gaussian(outputs, tokens * dim, seed=1, dtype=weight_dtype).to(device)
    bias = gaussian(outputs, seed=2, dtype=weight_dtype).to(device)
    check(prompt, weight, bias)
    check(prompt, weight, bias, backend="torch")


@pytest.mark.parametrize("dtype", DTYPES)
def test_production_size(dtype: torch.dtype, device: torch.device, full_size: bool, gaussian: Draw) -> None:
    batch = 64 if full_size else 2
    tokens = 77 if full_size else 2
    prompt = gaussian(batch, tokens, 2048, dtype=dtype).to(device)
    weight = gaussian(8, tokens * 2048, seed=1, dtype=dtype).to(device)
    check(prompt, weight, gaussian(8, seed=2).to(device))


def test_strided_inputs(device: torch.device, gaussian: Draw) -> None:
    prompt = gaussian(3, 50, 4).to(device).mT
    weight = gaussian(200, 8, seed=1).to(device).mT
    bias = gaussian(16, seed=2).to(device)[::2]
    check(prompt, weight, bias)
    check(gaussian(3, 9, 40).to(device)[:, 2:7], weight, bias)


def test_rows_do_not_depend_on_neighbours(device: torch.device, gaussian: Draw) -> None:
    prompt, weight = gaussian(20, 3, 211).to(device), gaussian(8, 633, seed=1).to(device)
    bias = torch.zeros(8, device=device)
    together = text_affine(prompt, weight, bias, backend="triton")
    alone = torch.cat([text_affine(row[None], weight, bias, backend="triton") for row in prompt])
    # NumPy's matrix product, which the interpreter uses, depends on the row's place; a tensor core does not.
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 if device.type == "cpu" else 0)
    assert torch.equal(together, text_affine(prompt, weight, bias, backend="triton"))


def test_empty_batch(device: torch.device) -> None:
    zeros = torch.zeros(8, 12, device=device)
    assert text_affine(torch.zeros(0, 3, 4, device=device), zeros, zeros[:, 0], backend="triton").shape == (
        0,
        8,
    )


def test_non_finite_values_reach_the_result(device: torch.device, gaussian: Draw) -> None:
    prompt, weight = gaussian(2, 3, 100).to(device), gaussian(8, 300, seed=1).to(device)
    prompt[1, 2, 3] = torch.nan
    result = text_affine(prompt, weight, torch.zeros(8, device=device), backend="triton")
    assert result[0].isfinite().all()
    assert result[1].isnan().all()

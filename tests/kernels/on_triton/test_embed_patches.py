"""The patch embedding kernel against float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from npnet_kernels.embedding.embed_patches import embed_patches
from npnet_kernels.embedding.reference import embed_patches_reference

Draw = Callable[..., torch.Tensor]


class Tolerance(NamedTuple):
    value: float
    reason: str


TOLERANCES = {
    torch.float32: Tolerance(1e-5, "three TF32 products of at most a few hundred terms, then a norm"),
    torch.float16: Tolerance(2e-3, "all but the result is float32: it rounds at 5e-4"),
    torch.bfloat16: Tolerance(2e-2, "as float16, at 4e-3"),
}


class Case(NamedTuple):
    shape: tuple[int, int, int, int]
    patches: int
    patch_pixels: int
    width: int


CASES = {
    "four channels": Case((2, 4, 16, 12), 49, 4, 8),
    "sixteen channels": Case((1, 16, 8, 8), 33, 4, 24),
    "one channel": Case((3, 1, 24, 24), 5, 9, 20),
    "patches of sixteen pixels": Case((1, 4, 40, 40), 10, 16, 96),  # statistics of several chunks
}


def operands(draw: Draw, case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    batch, channels, height, columns = case.shape
    terms = channels * case.patch_pixels
    places = torch.randint(
        height * columns, (case.patches * case.patch_pixels,), generator=torch.Generator().manual_seed(4)
    )
    return {
        "noise": (draw(*case.shape) + 0.5).to(dtype),
        "scale_shift": draw(batch, 2 * channels, seed=1),
        "pixel_index": places.int(),
        "weight": draw(case.width, terms, seed=2) / terms**0.5,
        "bias": draw(case.width, seed=3),
        "norm": (1 + 0.1 * draw(case.width, seed=5), 0.1 * draw(case.width, seed=6)),
    }


def move(given: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: tuple(x.to(device) for x in value) if isinstance(value, tuple) else value.to(device)
        for name, value in given.items()
    }


def double(given: dict[str, Any]) -> torch.Tensor:
    def wide(x: torch.Tensor) -> torch.Tensor:
        return x.cpu().double() if x.is_floating_point() else x.cpu()

    plain = [wide(value) for value in given.values() if isinstance(value, torch.Tensor)]
    return embed_patches_reference(
        *plain, *(wide(x) for x in given["norm"]), group_eps=1e-6, eps=1e-5, dtype=torch.float64
    )


def close(result: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    assert result.dtype == dtype
    error = (result.cpu().double() - exact).abs().max() / exact.abs().max().clamp(min=1)
    assert error <= TOLERANCES[dtype].value, float(error)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", CASES)
def test_against_double(name: str, dtype: torch.dtype, device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES[name]), device)
    for backend in ("triton", "torch"):
        close(embed_patches(**given, dtype=dtype, backend=backend), double(given), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_in_half_precision(dtype: torch.dtype, device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES["four channels"], dtype), device)
    close(embed_patches(**given, dtype=torch.float32, backend="triton"), double(given), torch.float32)


def test_strided_operands(device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES["four channels"]), device)
    given["noise"] = given["noise"].permute(1, 3, 2, 0).contiguous().permute(3, 0, 2, 1)
    given["weight"] = given["weight"].mT.contiguous().mT
    close(embed_patches(**given, dtype=torch.float32, backend="triton"), double(given), torch.float32)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_noise_of_any_scale(scale: float, device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES["sixteen channels"]), device)
    given["noise"] = given["noise"] * scale + 10 * scale
    close(embed_patches(**given, dtype=torch.float32, backend="triton"), double(given), torch.float32)


def test_an_image_does_not_depend_on_its_batch(device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES["one channel"]), device)
    together = embed_patches(**given, dtype=torch.float16, backend="triton")
    for row in range(3):
        one = {**given, "noise": given["noise"][row : row + 1]}
        one["scale_shift"] = given["scale_shift"][row : row + 1]
        assert torch.equal(
            together[row : row + 1], embed_patches(**one, dtype=torch.float16, backend="triton")
        )


def test_nan_stays_in_its_image(device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES["four channels"]), device)
    given["noise"][1, 2, 3, 4] = torch.nan
    result = embed_patches(**given, dtype=torch.float32, backend="triton")
    assert result[0].isfinite().all()
    assert result[1].isnan().all()  # through the group norm


def test_empty_batch(device: torch.device, gaussian: Draw) -> None:
    given = move(operands(gaussian, CASES["four channels"]), device)
    given["noise"], given["scale_shift"] = given["noise"][:0], given["scale_shift"][:0]
    assert embed_patches(**given, dtype=torch.float32, backend="triton").shape == (0, 49, 8)

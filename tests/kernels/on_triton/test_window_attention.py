"""The window attention kernel against float64."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from npnet_kernels.attention.reference import window_attention_reference
from npnet_kernels.attention.window_attention import window_attention

Draw = Callable[..., torch.Tensor]
Operands = tuple[torch.Tensor, ...]


class Tolerance(NamedTuple):
    value: float
    reason: str


TOLERANCES = {
    torch.float32: Tolerance(
        2e-5, "three TF32 products keep 2e-7 a term; the softmax passes on what scores err by"
    ),
    torch.float16: Tolerance(3e-3, "operands, queries, keys and weights of the softmax round at 5e-4"),
    torch.bfloat16: Tolerance(3e-2, "as float16, at 4e-3"),
}


class Size(NamedTuple):
    batch: int
    windows: int
    window_tokens: int
    heads: int
    head_width: int


SIZES = [
    Size(2, 4, 9, 2, 4),  # all below the smallest tile
    Size(1, 1, 49, 3, 32),  # a window as published
    Size(1, 2, 64, 1, 48),  # a full tile; a width that is no power of two
    Size(3, 3, 1, 5, 3),  # one token attends to itself
]


def operands(draw: Draw, size: Size, dtype: torch.dtype, shifted: bool = True) -> Operands:
    batch, windows, window_tokens, heads, head_width = size
    tokens, width = windows * window_tokens, heads * head_width
    x = 2 * draw(batch, tokens, width) + 3 * draw(batch, tokens, 1, seed=9)  # rows with a mean
    index = torch.randperm(tokens, generator=torch.Generator().manual_seed(1)).int()
    score_bias = draw(windows if shifted else 1, heads, window_tokens, window_tokens, seed=7)
    if shifted and window_tokens > 1:
        score_bias[-1, :, 0, 1:] -= 100.0  # as the mask of shifted windows
    return (
        x.to(dtype), index, 1 + 0.1 * draw(width, seed=2), 0.1 * draw(width, seed=3),
        (draw(3 * width, width, seed=4) / width**0.5).to(dtype), 0.1 * draw(3 * width, seed=5), score_bias,
    )  # fmt: skip


def double(given: Operands) -> torch.Tensor:
    wide = [x.cpu().double() if x.is_floating_point() else x.cpu() for x in given]
    return window_attention_reference(*wide, eps=1e-5)  # type: ignore[arg-type, misc]


def close(result: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    assert result.dtype == dtype
    error = (result.cpu().double() - exact).abs().max() / exact.abs().max().clamp(min=1)
    assert error <= TOLERANCES[dtype].value, float(error)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_against_double(size: Size, dtype: torch.dtype, device: torch.device, gaussian: Draw) -> None:
    given = tuple(x.to(device) for x in operands(gaussian, size, dtype))
    for backend in ("triton", "torch"):
        close(window_attention(*given, backend=backend), double(given), dtype)


def test_one_bias_for_all_windows(device: torch.device, gaussian: Draw) -> None:
    given = tuple(x.to(device) for x in operands(gaussian, SIZES[0], torch.float32, shifted=False))
    close(window_attention(*given, backend="triton"), double(given), torch.float32)


def test_strided_operands(device: torch.device, gaussian: Draw) -> None:
    x, index, *others = (tensor.to(device) for tensor in operands(gaussian, SIZES[0], torch.float32))
    strided = (tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor for tensor in others)
    given = (x.mT.contiguous().mT, index, *strided)
    close(window_attention(*given, backend="triton"), double(given), torch.float32)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_rows_of_any_scale(scale: float, device: torch.device, gaussian: Draw) -> None:
    """Also with means a thousand times their deviation: float32 holds such rows to 6e-5 of it."""
    x, *others = operands(gaussian, SIZES[1], torch.float32)
    given = tuple(tensor.to(device) for tensor in (x * scale, *others))
    close(window_attention(*given, backend="triton"), double(given), torch.float32)
    offset = (x + 1000.0, *others)
    result = window_attention(*(tensor.to(device) for tensor in offset), backend="triton")
    assert (result.cpu().double() - double(offset)).abs().max() < 1e-3


def test_scores_far_apart(device: torch.device, gaussian: Draw) -> None:
    """A softmax that would overflow without its maximum subtracted."""
    given = list(operands(gaussian, SIZES[0], torch.float32))
    given[4] = given[4] * 40
    result = window_attention(*(tensor.to(device) for tensor in given), backend="triton")
    exact = double(tuple(given))
    assert result.isfinite().all()
    # float32 scores of a thousand are sure to 1e-4 at best, and so are the weights.
    assert (result.cpu().double() - exact).abs().max() <= 1e-3 * exact.abs().max()


def test_an_image_does_not_depend_on_its_batch(device: torch.device, gaussian: Draw) -> None:
    x, *others = (
        tensor.to(device) for tensor in operands(gaussian, SIZES[0]._replace(batch=5), torch.float16)
    )
    together = window_attention(x, *others, backend="triton")
    alone = torch.cat([window_attention(image[None], *others, backend="triton") for image in x])
    assert torch.equal(together, alone)


def test_nan_stays_in_its_window(device: torch.device, gaussian: Draw) -> None:
    x, index, *others = (tensor.to(device) for tensor in operands(gaussian, SIZES[0], torch.float32))
    x[1, index[10].item()] = torch.nan  # in the second window of the second image
    result = window_attention(x, index, *others, backend="triton")
    assert result[0].isfinite().all()
    assert result[1, 9:18].isnan().all()
    assert result[1, :9].isfinite().all()
    assert result[1, 18:].isfinite().all()


def test_empty_batch(device: torch.device, gaussian: Draw) -> None:
    x, *others = (tensor.to(device) for tensor in operands(gaussian, SIZES[0], torch.float32))
    assert window_attention(x[:0], *others, backend="triton").shape == (0, *x.shape[1:])

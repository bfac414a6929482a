"""The reconstruction kernels against float64."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from npnet_kernels import combine, combine_with_peak, latent_to_matrix, reconstruct, spectral_correction
from npnet_kernels.backends import Backend
from npnet_kernels.reconstruction.reference import combine_reference, spectral_reference

Draw = Callable[..., torch.Tensor]


class Tolerance(NamedTuple):
    value: float
    reason: str


# By dtype of the noise, absolute, for golden noise of magnitude up to 8.
TOLERANCES = {
    torch.float32: Tolerance(
        2e-5, "float32 sums of 256 terms of order 0.1, tf32x3 keeps 22 bits; interpreted 8e-7"
    ),
    torch.float16: Tolerance(4e-3, "half a unit in the last place at 4 to 8 is 2e-3, TF32 products add 1e-4"),
    torch.bfloat16: Tolerance(
        3.2e-2, "a unit in the last place at 4 to 8 is 3.1e-2, and the interpreter truncates"
    ),
}
WEIGHTS = {"text_weight": 0.34, "residual_weight": 0.05}


class Inputs(NamedTuple):
    noise: torch.Tensor
    u: torch.Tensor
    f: torch.Tensor
    vh: torch.Tensor
    scale_shift: torch.Tensor
    residual: torch.Tensor

    def widened(self) -> "Inputs":
        return Inputs(*(x.double().cpu() for x in self))


def make_inputs(
    draw: Draw, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rows: int = 7
) -> Inputs:
    batch, channels, _, width = shape
    noise = draw(*shape).to(device=device, dtype=dtype)
    matrix = latent_to_matrix(noise.float().cpu())
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    f = 0.3 * s * draw(*s.shape, seed=1)
    return Inputs(
        noise, u.to(device), f.to(device), vh.to(device), draw(batch, 2 * channels, seed=2).to(device),
        draw(batch, channels, rows, width, seed=3).to(device),
    )  # fmt: skip


def spectral_double(i: Inputs) -> torch.Tensor:
    """Einsum in float64, sharing nothing with the code under test but the definition."""
    b, c, h, w = i.noise.shape
    g = round(c**0.5)
    product = torch.einsum("brk,bk,bkc->brc", i.u, i.f, i.vh).view(b, g, h, g, w)
    return i.noise + product.permute(0, 1, 3, 2, 4).reshape(b, c, h, w)


def golden_double(i: Inputs) -> torch.Tensor:
    b, c, h, _ = i.noise.shape
    flat = i.noise.view(b, -1)
    mean = flat.mean(1).view(b, 1, 1, 1)
    deviation = (flat.var(1, correction=0).view(b, 1, 1, 1) + 1e-6).sqrt()
    scale, shift = i.scale_shift[:, :c, None, None], i.scale_shift[:, c:, None, None]
    rows = (torch.arange(h).float() * (i.residual.shape[2] / h)).floor().long()
    text = (i.noise - mean) / deviation * (1 + scale) + shift
    return (
        spectral_double(i)
        + WEIGHTS["text_weight"] * text
        + WEIGHTS["residual_weight"] * i.residual[:, :, rows]
    )


SHAPES = [(2, 4, 32, 32), (1, 4, 20, 36), (5, 1, 17, 7), (1, 16, 8, 8), (1, 9, 33, 11)]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_double(
    shape: tuple[int, ...], dtype: torch.dtype, backend: Backend, device: torch.device, gaussian: Draw
) -> None:
    inputs = make_inputs(gaussian, shape, dtype, device)
    exact = inputs.widened()
    limit = TOLERANCES[dtype].value
    spectral = spectral_correction(*inputs[:4], backend=backend)
    whole = reconstruct(*inputs, **WEIGHTS, backend=backend)
    in_two = combine(spectral, inputs.noise, *inputs[4:], **WEIGHTS, backend=backend)
    assert spectral.dtype == torch.float32
    assert whole.dtype == in_two.dtype == dtype
    torch.testing.assert_close(spectral.cpu().double(), spectral_double(exact), rtol=0, atol=min(limit, 1e-3))
    torch.testing.assert_close(whole.cpu().double(), golden_double(exact), rtol=0, atol=limit)
    torch.testing.assert_close(in_two.cpu().double(), golden_double(exact), rtol=0, atol=limit)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_peak(
    shape: tuple[int, ...], dtype: torch.dtype, backend: Backend, device: torch.device, gaussian: Draw
) -> None:
    inputs = make_inputs(gaussian, shape, dtype, device)
    operands = inputs.noise.float(), inputs.noise, *inputs[4:]
    golden, peak = combine_with_peak(*operands, **WEIGHTS, backend=backend)
    assert torch.equal(golden, combine(*operands, **WEIGHTS, backend=backend))
    assert (peak.shape, peak.dtype) == (shape[:1], torch.float32)
    widened = combine(operands[0], inputs.noise.float(), *inputs[4:], **WEIGHTS, backend=backend)
    assert torch.equal(peak, widened.abs().amax((1, 2, 3)))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("position", [(0, 0, 0), (3, 16, 10), (2, 7, 5)])
def test_peak_of_what_is_not_finite(
    position: tuple[int, int, int], backend: Backend, device: torch.device, gaussian: Draw
) -> None:
    """In the first and the last tile as well; a latent's neighbours are told apart from it."""
    inputs = make_inputs(gaussian, (4, 4, 17, 11), torch.float32, device)
    spectral = inputs.noise.clone()
    for row, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        spectral[row, *position] = value
    spectral[0, 1, 1, 1] = torch.inf  # beside NaN, which is the larger
    _, peak = combine_with_peak(spectral, inputs.noise, *inputs[4:], **WEIGHTS, backend=backend)
    assert peak[0].isnan()
    assert peak[1:3].isposinf().all()
    assert peak[3].isfinite()


def test_peak_begins_anew(device: torch.device, gaussian: Draw) -> None:
    """Nothing of an earlier, larger result is left; and zeros have the peak zero."""
    inputs = make_inputs(gaussian, (2, 1, 9, 5), torch.float32, device)
    zeros = Inputs(*(torch.zeros_like(x) for x in inputs))
    for i in (inputs, zeros):
        golden, peak = combine_with_peak(i.noise, i.noise, *i[4:], **WEIGHTS, backend="triton")
        assert torch.equal(peak, golden.abs().amax((1, 2, 3)))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_production_size(dtype: torch.dtype, device: torch.device, full_size: bool, gaussian: Draw) -> None:
    if not full_size:
        pytest.skip("minutes in the interpreter")
    for batch in (1, 4, 16):
        inputs = make_inputs(gaussian, (batch, 4, 128, 128), dtype, device)
        whole = reconstruct(*inputs, **WEIGHTS, backend="triton")
        expected = golden_double(inputs.widened())
        torch.testing.assert_close(whole.cpu().double(), expected, rtol=0, atol=TOLERANCES[dtype].value)


def test_strided_inputs(device: torch.device, gaussian: Draw) -> None:
    inputs = make_inputs(gaussian, (2, 4, 24, 16), torch.float32, device)
    expected = reconstruct(*inputs, **WEIGHTS, backend="triton")
    transposed = Inputs(*(x.mT.contiguous().mT if x.dim() > 2 else x for x in inputs))
    channels_last = transposed._replace(noise=inputs.noise.to(memory_format=torch.channels_last))
    wide = channels_last._replace(scale_shift=inputs.scale_shift.repeat_interleave(2, 1)[:, ::2])
    assert torch.equal(reconstruct(*wide, **WEIGHTS, backend="triton"), expected)


def test_independent_of_neighbours(device: torch.device, gaussian: Draw) -> None:
    inputs = make_inputs(gaussian, (6, 4, 16, 16), torch.float32, device)
    together = reconstruct(*inputs, **WEIGHTS, backend="triton")
    for i in range(6):
        alone = reconstruct(*(x[i : i + 1] for x in inputs), **WEIGHTS, backend="triton")
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=2e-6)


def test_statistics_survive_a_large_mean(device: torch.device, gaussian: Draw) -> None:
    inputs = make_inputs(gaussian, (2, 4, 32, 32), torch.float32, device)
    inputs = inputs._replace(noise=inputs.noise + 1000, f=torch.zeros_like(inputs.f))
    golden = reconstruct(*inputs, **WEIGHTS, backend="triton").cpu().double()
    # E[x^2] - E[x]^2 would lose six digits here; the subtraction itself rounds at 1000 * 2**-24.
    torch.testing.assert_close(golden, golden_double(inputs.widened()), rtol=0, atol=5e-4)


def test_several_chunks(device: torch.device, gaussian: Draw) -> None:
    inputs = make_inputs(gaussian, (1, 4, 56, 48), torch.float32, device)
    golden = reconstruct(*inputs, **WEIGHTS, backend="triton").cpu().double()
    torch.testing.assert_close(golden, golden_double(inputs.widened()), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("height", "rows"), [(13, 7), (56, 7), (84, 7), (96, 7), (7, 7), (14, 7), (30, 1)])
def test_row_index_is_that_of_interpolate(
    height: int, rows: int, device: torch.device, gaussian: Draw
) -> None:
    noise = torch.zeros(1, 1, height, 4, device=device)
    residual = gaussian(1, 1, rows, 4).to(device)
    zeros = torch.zeros(1, 2, device=device)
    golden = combine(noise, noise, zeros, residual, text_weight=0.0, residual_weight=1.0, backend="triton")
    expected = torch.nn.functional.interpolate(residual, size=(height, 4), mode="nearest")
    assert torch.equal(golden, expected)


def test_empty_batch(device: torch.device, gaussian: Draw) -> None:
    inputs = Inputs(*(x[:0] for x in make_inputs(gaussian, (1, 4, 8, 8), torch.float16, device)))
    golden = reconstruct(*inputs, **WEIGHTS, backend="triton")
    assert golden.shape == (0, 4, 8, 8)
    assert golden.dtype == torch.float16


def test_constant_noise_divides_by_epsilon_only(device: torch.device, gaussian: Draw) -> None:
    inputs = make_inputs(gaussian, (1, 4, 16, 16), torch.float32, device)
    inputs = inputs._replace(noise=torch.full_like(inputs.noise, 3.0))
    spectral = spectral_reference(*inputs[:4])
    expected = combine_reference(spectral, inputs.noise, *inputs[4:], *WEIGHTS.values())
    torch.testing.assert_close(reconstruct(*inputs, **WEIGHTS, backend="triton"), expected, rtol=0, atol=2e-5)


def test_deterministic(device: torch.device, gaussian: Draw) -> None:
    inputs = make_inputs(gaussian, (2, 4, 16, 16), torch.bfloat16, device)
    first, second = (reconstruct(*inputs, **WEIGHTS, backend="triton") for _ in range(2))
    assert torch.equal(first, second)

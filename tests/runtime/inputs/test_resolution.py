"""`resolution="transfer"`: white noise stays white at every size, and the change arrives where it should."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from npnet_runtime import EngineBundle, GoldenNoise, NPNetConfig
from npnet_runtime.errors import InputError
from npnet_runtime.inputs.resolution import FILL_SEED, _averages, _fill, to_native_size, to_network_size
from support.networks import SMALL, noise_and_prompts

FULL = NPNetConfig()
# Latents of SDXL's sizes in pixels / 8, and both extremes.
SIZES = [(256, 256), (192, 192), (129, 131), (152, 104), (168, 96), (64, 64), (96, 127), (17, 300)]


def white(height: int, width: int, batch: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed))


def assert_white(noise: Tensor) -> None:
    """Mean, standard deviation, correlation of neighbours, and power at every radius: all within 5 sigma."""
    noise = noise.double()
    count = noise.numel()
    assert abs(noise.mean()) < 5 / count**0.5
    assert abs(noise.std() - 1) < 5 / (2 * count) ** 0.5
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0)):
        here = noise[..., : noise.shape[-2] - dy, : noise.shape[-1] - dx]
        assert abs((here * noise[..., dy:, dx:]).mean()) < 5 / count**0.5, (dy, dx)
    power = torch.fft.fft2(noise, norm="ortho").abs().square().mean((0, 1))
    planes = noise.shape[0] * noise.shape[1]
    fy, fx = (torch.fft.fftfreq(size).abs() for size in noise.shape[-2:])
    radius = (fy[:, None] ** 2 + fx**2).sqrt()
    for low in torch.arange(0, 0.7, 0.07):
        ring = (radius >= low) & (radius < low + 0.07)
        # a real transform says everything twice
        samples = int(ring.sum()) * planes / 2
        assert abs(power[ring].mean() - 1) < 5 / samples**0.5, f"frequency {low:.2f}"


class TestStatistics:
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_what_the_network_sees_is_white(self, size: tuple[int, int]) -> None:
        seen = to_network_size(white(*size), FULL)
        assert seen.shape == (4, 4, 128, 128)
        assert_white(seen)

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_result_is_white(self, size: tuple[int, int]) -> None:
        """The change here is the one from this noise to other white noise: as large as a change can be."""
        noise = white(*size)
        other = to_network_size(white(*size, seed=1), FULL)
        assert_white(noise + to_native_size(other - to_network_size(noise, FULL), *size, FULL))

    @pytest.mark.parametrize(
        ("mode", "side"),
        [("nearest", 96), ("bilinear", 96), ("bilinear", 192), ("area", 96), ("area", 192)],
    )
    def test_the_test_sees_what_resizing_does(self, mode: str, side: int) -> None:
        with pytest.raises(AssertionError):
            assert_white(F.interpolate(white(side, side), (128, 128), mode=mode))


class TestTransfer:
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_no_change_is_no_change(self, size: tuple[int, int]) -> None:
        noise = white(*size)
        seen = to_network_size(noise, FULL)
        assert torch.equal(noise + to_native_size(seen - seen, *size, FULL), noise)

    @pytest.mark.parametrize("size", [(256, 256), (192, 192), (152, 140), (129, 131)], ids=str)
    def test_network_sees_golden_noise_in_the_result(self, size: tuple[int, int]) -> None:
        """Larger on both sides: Q result = golden(Q x)."""
        noise, wanted = white(*size), white(128, 128, seed=2)
        result = noise + to_native_size(wanted - to_network_size(noise, FULL), *size, FULL)
        torch.testing.assert_close(to_network_size(result, FULL), wanted, atol=2e-5, rtol=0)

    def test_blocks(self) -> None:
        """Twice the size: block averages, times 2 for unit variance, and their transpose."""
        noise = white(256, 256)
        torch.testing.assert_close(
            to_network_size(noise, FULL), 2 * F.avg_pool2d(noise, 2), atol=2e-5, rtol=0
        )
        change = white(128, 128)
        expected = F.interpolate(change, scale_factor=2) / 2
        torch.testing.assert_close(to_native_size(change, 256, 256, FULL), expected, atol=2e-5, rtol=0)

    def test_smaller_noise_is_the_block_average_of_what_the_network_sees(self) -> None:
        noise = white(64, 96)
        seen = to_network_size(noise, FULL)
        torch.testing.assert_close(to_native_size(seen, 64, 96, FULL), noise, atol=2e-5, rtol=0)

    def test_each_noise_by_itself(self) -> None:
        noise = white(96, 160)
        assert torch.equal(to_network_size(noise, FULL)[1:2], to_network_size(noise[1:2], FULL))

    def test_draws_nothing(self) -> None:
        state = torch.get_rng_state()
        to_network_size(white(64, 64), FULL)
        assert torch.equal(torch.get_rng_state(), state)


class TestGolden:
    @pytest.fixture
    def golden(self, small_bundle: EngineBundle) -> GoldenNoise:
        return GoldenNoise(small_bundle, device="cpu", resolution="transfer")

    def test_own_size_is_left_alone(self, golden: GoldenNoise, small_bundle: EngineBundle) -> None:
        given = noise_and_prompts(SMALL, 2)
        assert torch.equal(golden(*given), GoldenNoise(small_bundle, device="cpu")(*given))

    @pytest.mark.parametrize("size", [(32, 32), (24, 20), (12, 20), (8, 8)], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_other_sizes(self, golden: GoldenNoise, size: tuple[int, int], dtype: torch.dtype) -> None:
        noise, prompts = white(*size).to(dtype), noise_and_prompts(SMALL, 2)[1]
        seen = to_network_size(noise.float(), SMALL)
        expected = noise.float() + to_native_size(golden(seen, prompts) - seen, *size, SMALL)
        given = golden(noise, prompts)
        assert given.dtype == dtype
        torch.testing.assert_close(given, expected.to(dtype), atol=1e-5, rtol=1e-3)
        assert torch.equal(golden(golden.prepare(noise), prompts), given)

    def test_off_by_default(self, small_bundle: EngineBundle) -> None:
        golden, prompts = GoldenNoise(small_bundle, device="cpu"), noise_and_prompts(SMALL, 1)[1]
        with pytest.raises(
            InputError, match=r"4, 16, 16\).*given \(4, 4, 32, 32\); images of 128 x 128 pixels.*trans"
        ):
            golden(white(32, 32), prompts)

    @pytest.mark.parametrize("shape", [(1, 3, 32, 32), (4, 32, 32), (0, 4, 32, 32), (1, 4, 0, 32)])
    def test_refused(self, golden: GoldenNoise, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"noise: expected (shape|a batch)"):
            golden(torch.zeros(shape), noise_and_prompts(SMALL, 1)[1])

    def test_unknown_policy(self, small_bundle: EngineBundle) -> None:
        with pytest.raises(InputError, match="resolution: expected one of error, transfer, given 'bilinear'"):
            GoldenNoise(small_bundle, device="cpu", resolution="bilinear")  # type: ignore[arg-type]

    def test_travels_with_a_pickle(self, golden: GoldenNoise) -> None:
        noise, prompts = white(32, 32, 1), noise_and_prompts(SMALL, 1)[1]
        assert torch.equal(pickle.loads(pickle.dumps(golden))(noise, prompts), golden(noise, prompts))


def test_landscape_networks() -> None:
    config = replace(FULL, latent_height=96, latent_width=160)
    assert_white(to_network_size(white(128, 128), config))


@pytest.mark.parametrize(("cells", "places"), [(2, 3), (5, 13), (16, 19), (7, 14)])
def test_averages_cut_places_where_the_cells_end(cells: int, places: int) -> None:
    """A place that two cells share counts for both, so that both ends are treated alike."""
    q = _averages(cells, places)
    torch.testing.assert_close(q @ q.mT, torch.eye(cells))
    torch.testing.assert_close(q, q.flip(0, 1))
    assert (q.argmax(0).diff() >= 0).all()  # cells follow one another


def test_the_fill_is_the_same_for_ever_and_another_for_each_axis() -> None:
    noise = torch.zeros(1, *SMALL.latent_shape)
    for axis in (2, 3):
        generator = torch.Generator().manual_seed(FILL_SEED + axis)
        assert torch.equal(_fill(SMALL, axis, noise), torch.randn(noise.shape, generator=generator))
    assert not torch.equal(_fill(SMALL, 2, noise), _fill(SMALL, 3, noise))


@pytest.mark.parametrize("size", [(1, 1), (3, 16), (16, 3)])
def test_too_small_to_be_transferred(small_torch_bundle: EngineBundle, size: tuple[int, int]) -> None:
    """A mean of the change adds up over the places that one stands for: 1 x 1 had a deviation of 27."""
    golden = GoldenNoise(small_torch_bundle, device="cpu", resolution="transfer")
    with pytest.raises(InputError, match="expected 4 x 4 or more, .* given .* make a larger image"):
        golden(torch.randn(1, 4, *size), torch.randn(1, *SMALL.text_shape))


@pytest.mark.parametrize("resolution", ["transfer", "error"])
@pytest.mark.parametrize("size", [(16, 16), (24, 16)])
def test_an_empty_batch(small_torch_bundle: EngineBundle, resolution: Any, size: tuple[int, int]) -> None:
    golden = GoldenNoise(small_torch_bundle, device="cpu", resolution=resolution)
    with pytest.raises(InputError, match="noise: expected a batch of at least 1, given an empty one"):
        golden(torch.randn(0, 4, *size), torch.randn(1, *SMALL.text_shape))

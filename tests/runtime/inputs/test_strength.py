"""Noise between plain and golden keeps the statistics of noise."""

from __future__ import annotations

import pickle

import pytest
import torch

from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.errors import InputError
from npnet_runtime.inputs.strength import check_strength, mix
from support.networks import SMALL, noise_and_prompts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("strength", [0.25, 0.5, 0.9])
def test_statistics(strength: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(3, 4, 32, 32, generator=generator).to(dtype)
    golden = (0.6 * plain.float() + torch.randn(plain.shape, generator=generator) + 0.1).to(dtype)
    given = mix(plain, golden, strength)
    assert given.dtype == dtype
    for statistic in (torch.mean, torch.std):
        own, other, found = (statistic(x.float(), (1, 2, 3)) for x in (plain, golden, given))
        torch.testing.assert_close(found, own + strength * (other - own), atol=3e-3, rtol=0)
    naive = torch.lerp(plain.float(), golden.float(), strength)
    assert (naive.std((1, 2, 3)) < given.float().std((1, 2, 3)) - 0.01).all()  # what it is there for


def test_ends() -> None:
    plain, golden = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    assert torch.equal(mix(plain, golden, 0), plain)
    assert torch.equal(mix(plain, golden, 1.0), golden)
    assert mix(plain, golden, 0).data_ptr() != plain.data_ptr()


@pytest.mark.parametrize("given", [-0.1, 1.5, float("nan"), True, "1", None])
def test_refused(given: object) -> None:
    with pytest.raises(InputError, match="strength: expected a number from 0"):
        check_strength(given)


class TestGoldenNoise:
    def test_strength(self, small_bundle: EngineBundle) -> None:
        noise, prompts = noise_and_prompts(SMALL, 3)
        golden = GoldenNoise(small_bundle, device="cpu")
        half = GoldenNoise(small_bundle, device="cpu", strength=0.5)
        assert torch.equal(half(noise, prompts), mix(noise, golden(noise, prompts), 0.5))
        assert torch.equal(half(half.prepare(noise), prompts), half(noise, prompts))
        assert "strength: 0.5" in half.report()
        assert torch.equal(pickle.loads(pickle.dumps(half))(noise, prompts), half(noise, prompts))
        assert torch.equal(golden.using(strength=0)(noise, prompts), noise)
        half(noise, prompts).add_(1)  # callers may change it

    def test_one_engine(self, small_torch_bundle: EngineBundle) -> None:
        golden = GoldenNoise(small_torch_bundle, device="cpu", tokens="average")
        other = golden.using(strength=0.3, resolution="transfer")
        assert golden.shares_engine(other)
        assert not golden.shares_engine(GoldenNoise(small_torch_bundle, device="cpu"))
        long = torch.randn(1, 10, 12)
        assert other(torch.randn(1, 4, 24, 16), long).shape == (1, 4, 24, 16)
        with pytest.raises(InputError, match="resolution="):
            golden(torch.randn(1, 4, 24, 16), long)
        for policy in ({"strength": 2}, {"tokens": "cut"}, {"resolution": "stretch"}):
            with pytest.raises(InputError):
                golden.using(**policy)

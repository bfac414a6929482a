"""The cache of prepared noises: exact, bounded, counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from npnet_runtime import GoldenNoise
from npnet_runtime.errors import InputError
from npnet_runtime.hot_path.caches import Cache, content_key
from support.networks import SMALL, noise_and_prompts


def test_keeps_what_was_used_last() -> None:
    cache: Cache[str] = Cache(2)
    made: list[str] = []

    def get(key: str) -> str:
        return cache.get(key, lambda: made.append(key) or key.upper())  # type: ignore[func-returns-value]

    assert [get(key) for key in "abacab"] == list("ABACAB")
    assert made == list("abcb")  # "a" was used after "b", so "c" drove "b" out
    assert str(cache) == "cache: 2 of 2 prepared noises, 2 hits, 4 misses, 2 dropped"


def test_off_and_without_a_key() -> None:
    for cache, key in ((Cache(0), "a"), (Cache(3), None)):
        made = [cache.get(key, object) for _ in range(2)]
        assert made[0] is not made[1]
    assert "off" in str(Cache(0))


def test_an_error_keeps_nothing() -> None:
    cache: Cache[int] = Cache(1)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 // 0)
    assert cache.get("a", lambda: 5) == 5


@pytest.mark.parametrize("size", [-1, 1.5, "4", True, None])
def test_sizes_refused(size: object) -> None:
    with pytest.raises(InputError, match="cache_size: expected 0 or the number"):
        Cache(size)  # type: ignore[arg-type]


def test_threads() -> None:
    cache: Cache[int] = Cache(3)
    with ThreadPoolExecutor(8) as threads:
        keys = [index % 5 for index in range(400)]
        assert list(threads.map(lambda key: cache.get(key, lambda: key), keys)) == keys


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_key_is_content(dtype: torch.dtype) -> None:
    noise = torch.randn(1, 4, 6, 5).to(dtype)
    key = content_key(noise)
    assert key == content_key(noise.clone())
    assert key == content_key(noise.transpose(2, 3).contiguous().transpose(2, 3))
    assert key != content_key(noise.view(1, 4, 5, 6))
    assert key != content_key(noise.float() if dtype != torch.float32 else noise.double())
    changed = noise.clone()
    changed[0, 3, 5, 4] += 1
    assert key != content_key(changed)


class TestGolden:
    def test_same_bits_and_counted(self, small_torch_bundle) -> None:
        plain, caching = (
            GoldenNoise(small_torch_bundle, device="cpu"),
            GoldenNoise(small_torch_bundle, device="cpu", cache_size=2),
        )
        for seed in (0, 1, 0, 2, 0, 1):
            noise, prompts = noise_and_prompts(SMALL, 2, seed)
            assert torch.equal(caching(noise, prompts), plain(noise, prompts))
        assert "2 of 2 prepared noises, 2 hits, 4 misses, 2 dropped" in caching.report()
        assert "cache: off" in plain.report()

    def test_prepared_once(self, small_torch_bundle) -> None:
        golden = GoldenNoise(small_torch_bundle, device="cpu", cache_size=1)
        noise, _ = noise_and_prompts(SMALL, 1)
        first = golden.prepare(noise)
        assert golden.prepare(noise.clone()) is first
        noise[0, 0, 0, 0] += 1  # in place: other content, and so another noise
        assert golden.prepare(noise) is not first

    def test_a_wrong_key_does_no_harm_on_a_cpu(self, small_torch_bundle) -> None:
        golden = GoldenNoise(small_torch_bundle, device="cpu", cache_size=4)
        (one, prompts), (two, _) = noise_and_prompts(SMALL, 1, 1), noise_and_prompts(SMALL, 1, 2)
        golden.prepare(one, key="seed")
        assert torch.equal(golden(golden.prepare(two, key="seed"), prompts), golden(two, prompts))

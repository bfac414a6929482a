"""The prefetcher: exact, bounded, ended by its seeds, by an error, by closing, by a fork."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from npnet_runtime import GoldenNoise, Prefetcher
from npnet_runtime.errors import InputError, PrefetchError
from npnet_runtime.prefetch import draw_noise
from support.networks import SMALL, noise_and_prompts


@pytest.fixture(scope="module")
def golden(small_torch_bundle) -> GoldenNoise:
    return GoldenNoise(small_torch_bundle, device="cpu")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "npnet-prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> object:
    yield
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


def wait_until(true) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_same_bits_as_on_demand(golden: GoldenNoise) -> None:
    _, prompts = noise_and_prompts(SMALL, 1)
    with Prefetcher(golden, range(5), depth=2) as prefetcher:
        items = list(prefetcher)
    assert [item.seed for item in items] == [0, 1, 2, 3, 4]
    for seed, prepared in items:
        noise = torch.randn(
            1, *SMALL.latent_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32
        )
        assert torch.equal(prepared.noise, noise)
        assert torch.equal(golden(prepared, prompts), golden(noise, prompts))


def test_own_seeds_differ_and_touch_no_random_state(golden: GoldenNoise) -> None:
    before = torch.get_rng_state()
    with Prefetcher(golden) as prefetcher:
        seeds = [next(prefetcher).seed for _ in range(8)]
    assert len(set(seeds)) == 8
    assert torch.equal(torch.get_rng_state(), before)


def test_bounded(golden: GoldenNoise) -> None:
    drawn: list[int] = []

    def draw(seed: int) -> Tensor:
        drawn.append(seed)
        return draw_noise(golden, seed)

    with Prefetcher(golden, itertools.count(), draw, depth=3) as prefetcher:
        wait_until(lambda: len(drawn) == 3)
        time.sleep(0.1)
        assert len(drawn) == 3
        assert next(prefetcher).seed == 0
        wait_until(lambda: len(drawn) == 4)


def test_ends_with_its_seeds(golden: GoldenNoise) -> None:
    prefetcher = Prefetcher(golden, [7])
    assert [item.seed for item in prefetcher] == [7]
    assert list(prefetcher) == []
    prefetcher.close()


def test_errors_come_in_their_turn(golden: GoldenNoise) -> None:
    def draw(seed: int) -> Tensor:
        if seed == 2:
            raise OSError("no entropy")
        return draw_noise(golden, seed)

    with Prefetcher(golden, itertools.count(), draw, depth=4) as prefetcher:
        assert [next(prefetcher).seed for _ in range(2)] == [0, 1]
        for _ in range(2):
            with pytest.raises(OSError, match="no entropy"):
                next(prefetcher)


def test_noise_that_the_engine_refuses(golden: GoldenNoise) -> None:
    wrong = Prefetcher(golden, [0], lambda seed: torch.zeros(1, 3, 16, 16))
    with wrong as prefetcher, pytest.raises(InputError, match="noise: expected shape"):
        next(prefetcher)


def test_seeds_that_are_no_numbers(golden: GoldenNoise) -> None:
    with Prefetcher(golden, ["cat"]) as prefetcher, pytest.raises(InputError, match="given 'cat'"):
        next(prefetcher)


@pytest.mark.parametrize("depth", [0, -1, 1.5, True])
def test_depths_refused(golden: GoldenNoise, depth: object) -> None:
    with pytest.raises(InputError, match="depth: expected a number of noises, at least 1"):
        Prefetcher(golden, depth=depth)  # type: ignore[arg-type]


def test_closed(golden: GoldenNoise) -> None:
    prefetcher = Prefetcher(golden)
    next(prefetcher)
    prefetcher.close()
    prefetcher.close()
    assert not threads()
    with pytest.raises(PrefetchError, match="one that was closed"):
        next(prefetcher)


def test_closing_wakes_who_waits(golden: GoldenNoise) -> None:
    go = threading.Event()

    def draw(seed: int) -> Tensor:
        assert go.wait(10)
        return draw_noise(golden, seed)

    prefetcher = Prefetcher(golden, itertools.count(), draw)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(next, prefetcher)
        closing = pool.submit(prefetcher.close)
        with pytest.raises(PrefetchError):
            waiting.result(timeout=10)
        assert not closing.done()  # the noise that is being drawn is waited for
        go.set()
        closing.result(timeout=10)


def test_many_consumers(golden: GoldenNoise) -> None:
    with Prefetcher(golden, range(40), depth=3) as prefetcher, ThreadPoolExecutor(5) as pool:
        taken = list(pool.map(lambda _: [item.seed for item in prefetcher], range(5)))
    assert sorted(itertools.chain(*taken)) == list(range(40))


def test_forgotten(golden: GoldenNoise) -> None:
    prefetcher = Prefetcher(golden)
    next(prefetcher)
    gone = weakref.ref(prefetcher)
    del prefetcher
    gc.collect()
    assert gone() is None
    assert not threads()


def test_after_a_fork(golden: GoldenNoise) -> None:
    with Prefetcher(golden) as prefetcher:
        next(prefetcher)
        child = os.fork()
        if child == 0:
            try:
                next(prefetcher)
            except PrefetchError as error:
                prefetcher.close()  # returns, though the thread is not here
                os._exit(0 if "after the fork" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        next(prefetcher)


def test_a_program_that_forgets_to_close_ends(golden: GoldenNoise) -> None:
    code = (
        "import sys\nfrom npnet_runtime import GoldenNoise, Prefetcher\n"
        "ring = Prefetcher(GoldenNoise(sys.argv[1], device='cpu'))\nprint(next(ring).seed)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(golden.bundle.path)], capture_output=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 0

"""CUDA graphs and streams on a device: `pytest -m gpu`. Small networks; full-size engines: `test_gpu.py`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from npnet_export import ExportSettings, export
from npnet_export.weights import WeightsRequest
from npnet_kernels import latent_to_matrix, svd
from npnet_runtime import EngineBundle, GoldenNoise, NPNet, NPNetError, Prefetcher
from npnet_runtime.errors import BackendError, InputError
from npnet_runtime.hot_path import GraphPath, StreamPath
from npnet_runtime.hot_path.capture import Capture
from support.networks import SMALL, noise_and_prompts

pytestmark = pytest.mark.gpu
# Two solvers, whose vectors differ in the last bits; and batches of other sizes, multiplied in another order.
CLOSE = 5e-5


def settings(checkpoint: Path, output: Path, engine: str) -> ExportSettings:
    weights = WeightsRequest(None, str(checkpoint))
    return ExportSettings(weights, output, "small", engine, max_batch=6, device="cuda")


@pytest.fixture(scope="module", params=["torch", "aoti", "tensorrt", "tensorrt-rtx"])
def bundle(request: pytest.FixtureRequest, small_checkpoint, tmp_path_factory) -> EngineBundle:
    output = tmp_path_factory.mktemp("gpu") / "engine"
    try:
        return export(settings(small_checkpoint, output, request.param))
    except NPNetError as error:
        if any(reason in str(error) for reason in ("cannot be imported", "is built for compute capability")):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def golden(bundle: EngineBundle) -> GoldenNoise:
    return GoldenNoise(bundle, device="cuda", cuda_graphs=True)


@pytest.fixture(scope="module")
def plain(bundle: EngineBundle) -> GoldenNoise:
    return GoldenNoise(bundle, device="cuda", cuda_graphs=False)


def inputs(batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    noise, prompts = noise_and_prompts(SMALL, batch, seed)
    return noise.cuda(), prompts.cuda()


def test_which_path(golden: GoldenNoise, plain: GoldenNoise) -> None:
    assert isinstance(golden._path, GraphPath)
    assert isinstance(plain._path, StreamPath)
    assert "CUDA graphs: on" in golden.report()
    assert "off: cuda_graphs=False was asked for" in plain.report()


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6, 7, 14])
def test_agrees_without_graphs(golden: GoldenNoise, plain: GoldenNoise, batch: int) -> None:
    for seed in range(3):
        noise, prompts = inputs(batch, seed)
        torch.testing.assert_close(golden(noise, prompts), plain(noise, prompts), atol=CLOSE, rtol=0)


def test_prepared_noise_gives_the_same_bits(golden: GoldenNoise) -> None:
    for batch in (1, 3, 7):
        noise, prompts = inputs(batch)
        assert torch.equal(golden(golden.prepare(noise), prompts), golden(noise, prompts))


def test_replays_with_fresh_inputs(golden: GoldenNoise) -> None:
    first = [golden(*inputs(2, seed)) for seed in range(5)]
    again = [golden(*inputs(2, seed)) for seed in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


def test_results_are_not_overwritten(golden: GoldenNoise) -> None:
    kept = golden(*inputs(1, 1))
    copy = kept.clone()
    golden(*inputs(1, 2))
    assert torch.equal(kept, copy)


def test_late_inputs_on_the_callers_stream(golden: GoldenNoise) -> None:
    noise, prompts = inputs(2)
    expected = golden(noise, prompts)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        late = torch.zeros_like(noise), torch.zeros_like(prompts)
        torch.cuda._sleep(20_000_000)
        late[0].copy_(noise)
        late[1].copy_(prompts)
        prepared = golden.prepare(late[0])
        assert torch.equal(golden(*late), expected)
        assert torch.equal(golden(prepared, late[1]), expected)


def test_prepare_does_not_wait(golden: GoldenNoise) -> None:
    noise, prompts = inputs(1)
    golden(golden.prepare(noise), prompts)
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    prepared = golden.prepare(noise)
    assert prepared.ready is not None
    assert not prepared.ready.query()  # the host is back while the device still sleeps
    expected = golden(noise, prompts)
    assert torch.equal(golden(prepared, prompts), expected)


def test_prepare_overlaps_with_what_comes_next(golden: GoldenNoise) -> None:
    noise, _ = inputs(1)
    golden.prepare(noise)
    torch.cuda.synchronize()
    prepared = golden.prepare(noise)
    torch.cuda._sleep(2_000_000_000)  # on the caller's stream, a second: the preparation is not behind it
    assert prepared.ready is not None
    prepared.ready.synchronize()
    assert not torch.cuda.current_stream().query()


def test_used_and_dropped_on_another_stream(golden: GoldenNoise) -> None:
    """Memory of prepared noise is not given to others before its reader is done."""
    noise, prompts = inputs(2)
    expected = golden(noise, prompts)
    for _ in range(20):
        with torch.cuda.stream(torch.cuda.Stream()):
            prepared = golden.prepare(noise)
        with torch.cuda.stream(torch.cuda.Stream()):
            given = golden(prepared, prompts)
            del prepared
            rubbish = [torch.full_like(noise, 7.0) for _ in range(8)]
        torch.cuda.synchronize()
        assert torch.equal(given, expected)
        del rubbish


def test_threads_on_streams_of_their_own(golden: GoldenNoise) -> None:
    batches = [1 + index % 6 for index in range(40)]
    expected = [golden(*inputs(batch, index)) for index, batch in enumerate(batches)]
    torch.cuda.synchronize()
    barrier = threading.Barrier(8)

    def call(index: int) -> Tensor:
        if index < 8:
            barrier.wait()
        with torch.cuda.stream(torch.cuda.Stream()):
            noise, prompts = inputs(batches[index], index)
            given = golden(golden.prepare(noise) if index % 2 else noise, prompts)
            torch.cuda.current_stream().synchronize()
            return given

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(len(batches))))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_captured_while_others_allocate(bundle: EngineBundle) -> None:
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            torch.empty(1 << 20, device="cuda").zero_().sum().item()

    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(disturb)
        try:
            golden = GoldenNoise(bundle, device="cuda", cuda_graphs=True)
            for batch in (1, 2, 4):
                assert golden(*inputs(batch)).isfinite().all()
        finally:
            stop.set()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_are_refused_by_the_call(golden: GoldenNoise, value: float) -> None:
    noise, prompts = inputs(2)
    broken = noise.clone()
    broken[1, 2, 3, 4] = value
    for given in (broken, golden.prepare(broken)):
        with pytest.raises(InputError, match="noise: expected finite values, given 1"):
            golden(given, prompts)
    with pytest.raises(InputError, match="prompt_embeds: expected finite values"):
        golden(noise, torch.full_like(prompts, value))
    assert golden(noise, prompts).isfinite().all()


def test_what_the_graphs_solver_does_not_solve(
    golden: GoldenNoise, plain: GoldenNoise, caplog: pytest.LogCaptureFixture
) -> None:
    """Noise of rank one: NaN from the graph, solved again without it, and said."""
    row = torch.randn(1, 4, 1, SMALL.latent_width, generator=torch.Generator().manual_seed(1))
    noise = row.expand(-1, -1, SMALL.latent_height, -1).contiguous().cuda()
    _, prompts = inputs(1)
    given = golden(noise, prompts)
    assert given.isfinite().all()
    if "solved again without a CUDA graph" in caplog.text:
        assert torch.equal(given, plain(noise, prompts))


def test_refused_inside_a_capture(golden: GoldenNoise) -> None:
    noise, prompts = inputs(1)
    golden(noise, prompts)
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(BackendError, match="before the capture"):
        golden(noise, prompts)


def test_a_capture_that_fails_says_what_avoids_it() -> None:
    value = torch.ones(3, device="cuda")

    def waits() -> Tensor:
        return value * value.sum().item()

    with pytest.raises(BackendError, match=r"(?s)no CUDA graph could be made: .*cuda_graphs=False"):
        Capture(torch.device("cuda", 0))(waits)
    recording = Capture(torch.device("cuda", 0))(lambda: value * 2)
    value.fill_(5)
    recording.replay()
    assert torch.equal(recording.output, torch.full_like(value, 10))


def test_keyed_cache(bundle: EngineBundle) -> None:
    golden = GoldenNoise(bundle, device="cuda", cache_size=2)
    noise, prompts = inputs(1)
    first = golden.prepare(noise, key=5)
    assert golden.prepare(noise, key=5) is first
    assert golden.prepare(noise) is not first
    assert torch.equal(golden(first, prompts), golden(noise, prompts))
    assert "1 hits, 1 misses" in golden.report()


def test_prefetcher(golden: GoldenNoise) -> None:
    _, prompts = inputs(1)
    with Prefetcher(golden, range(12), depth=3) as prefetcher:
        for seed, prepared in prefetcher:
            noise = torch.randn(1, *SMALL.latent_shape, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(golden(prepared, prompts), golden(noise.cuda(), prompts))


def test_memory_stays_flat(golden: GoldenNoise) -> None:
    noise, prompts = inputs(2)
    for _ in range(3):
        golden(golden.prepare(noise), prompts)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(100):
        golden(golden.prepare(noise), prompts)
        golden(noise, prompts)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 1 << 20


def test_onnxruntime_is_not_captured(small_checkpoint, tmp_path) -> None:
    try:
        made = export(settings(small_checkpoint, tmp_path / "engine", "onnxruntime"))
    except NPNetError as error:
        pytest.skip(str(error))
    assert "CUDA graphs: off: ONNX Runtime runs on a stream of its own" in GoldenNoise(made).report()
    with pytest.raises(BackendError, match="given one that they cannot"):
        GoldenNoise(made, cuda_graphs=True)


def test_network(golden: GoldenNoise, small_network: NPNet) -> None:
    noise, prompts = inputs(3)
    expected = small_network(noise.cpu(), prompts.cpu(), svd(latent_to_matrix(noise.cpu())))
    torch.testing.assert_close(golden(noise, prompts).cpu(), expected, atol=CLOSE, rtol=0)

"""Every graph of a call is captured cleanly, and is no larger than it may be."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from nodes import LIMITS, build, count
from npnet_export import ExportSettings, export
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.errors import BackendError
from npnet_runtime.hot_path.capture import Capture
from npnet_runtime.inputs.texts import random_inputs
from support.networks import ANY_SIZE

CALL = """
import sys, torch, standin
from npnet_kernels.linalg import svd
from npnet_runtime import GoldenNoise
svd._check_finite = lambda matrix: None
device = sys.argv[2]
golden = GoldenNoise(sys.argv[1], device=device, cuda_graphs=True)
config = golden.bundle.manifest.config
noise, prompts = (torch.zeros(1, *shape, device=device) for shape in (config.latent_shape, config.text_shape))
for given in (golden.prepare(noise), noise):
    assert golden(given, prompts).device == torch.device(device)
assert "graphs: on" in golden.report()
sys.exit(bool(standin.violations()))
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EngineBundle]:
    folder = tmp_path_factory.mktemp("engines")
    return {
        precision: build(folder / precision, "torch", precision) for precision in ("fp32", "fp16", "bf16")
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_nodes(precision: str, bundles: dict[str, EngineBundle]) -> None:
    for batch in (1, 3):
        for row in count(bundles[precision], batch):
            assert row["nodes"] <= LIMITS[row["graph"]], row
            assert row.get("host_waits", 1) <= 1, row
            # To a graph and from it: all that the host queues for a call, whatever the network.
            assert row.get("operations", 0) <= 6, row


def test_nodes_of_a_package(tmp_path: Path) -> None:
    """AOTInductor builds our kernels in, and adds next to nothing."""
    for row in count(build(tmp_path / "engine", "aoti", "fp16", 2), 2):
        assert row["nodes"] <= LIMITS[row["graph"]], row


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "10.0", "12.0"])
def test_compute_capabilities(capability: str, bundles: dict[str, EngineBundle]) -> None:
    _in_a_process(bundles["fp16"].path, "cuda:0", STANDIN_CAPABILITY=capability)


def test_the_second_of_two_devices(bundles: dict[str, EngineBundle]) -> None:
    _in_a_process(bundles["fp16"].path, "cuda:1", STANDIN_DEVICES="2")


def _in_a_process(bundle: Path, device: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(bundle), device],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def inputs(golden: GoldenNoise, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    config = golden.bundle.manifest.config
    shapes = (config.latent_shape, config.text_shape)
    noise, prompts = (torch.zeros(batch, *shape, device="cuda") for shape in shapes)
    return noise, prompts


def test_the_callers_stream_and_autocast(bundles: dict[str, EngineBundle]) -> None:
    golden = GoldenNoise(bundles["fp16"], device="cuda", cuda_graphs=True)
    with torch.cuda.stream(torch.cuda.Stream()), torch.autocast("cuda", torch.bfloat16):
        noise, prompts = inputs(golden)
        assert golden(golden.prepare(noise), prompts).dtype == noise.dtype
        assert golden(noise, prompts).dtype == noise.dtype


def test_other_threads_work_on_during_a_capture(bundles: dict[str, EngineBundle]) -> None:
    golden = GoldenNoise(bundles["fp16"], device="cuda", cuda_graphs=True)
    errors: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        stream = torch.cuda.Stream()
        try:
            while not stop.is_set():
                with torch.cuda.stream(stream):
                    torch.zeros(8, device="cuda").add_(1).sum().item()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        golden(*inputs(golden))
    finally:
        stop.set()
        thread.join()
    assert errors == []


def test_nothing_is_captured_after_the_warm_up(bundles: dict[str, EngineBundle]) -> None:
    golden = GoldenNoise(bundles["fp16"], device="cuda", cuda_graphs=True)
    golden.warm_up(batches=[1, 2], callers=2)
    standin = import_module("standin")
    before = len(standin.graphs())
    for batch in (1, 2):
        noise, prompts = inputs(golden, batch)
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(golden, golden.prepare(noise), prompts) for _ in range(4)]:
                done.result()
        golden(noise, prompts)
    assert len(standin.graphs()) == before


def test_no_garbage_is_collected_during_a_capture() -> None:
    """What lies in a cycle would be freed there: an engine's destructor calls `cudaFree`."""
    seen: list[bool] = []

    class Cycle:
        def __init__(self) -> None:
            self.own = self

        def __del__(self) -> None:
            freed.append(torch.cuda.is_current_stream_capturing())

    freed: list[bool] = []

    def compute() -> torch.Tensor:
        seen.append(gc.isenabled())
        for _ in range(2000):  # more than the collector waits for
            Cycle()
        return torch.zeros(1, device="cuda") + 1

    assert gc.isenabled()
    Capture(torch.device("cuda", 0))(compute)
    assert gc.isenabled()
    assert seen == [True, True, False]  # twice to warm up, then captured
    assert not any(freed)


def test_too_little_memory_to_capture(bundles: dict[str, EngineBundle]) -> None:
    """An error that says what to do, and none of the calls after it suffers."""
    golden = GoldenNoise(bundles["fp16"], device="cuda", cuda_graphs=True)
    given = inputs(golden)
    golden(*given)
    larger = inputs(golden, 8)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        with pytest.raises(BackendError, match=r"out of memory(.|\n)*(cuda_graphs=False|smaller batch)"):
            golden(*larger)
        assert not torch.cuda.is_current_stream_capturing()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    golden(*given)
    golden(*larger)


def test_float32_engines_refuse_tf32(bundles: dict[str, EngineBundle]) -> None:
    golden = GoldenNoise(bundles["fp32"], device="cuda", cuda_graphs=False)
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(BackendError, match="TF32"):
            golden(*inputs(golden))
    finally:
        torch.set_float32_matmul_precision("highest")
    golden(*inputs(golden))


def test_any_size(tmp_path: Path) -> None:
    """A graph for each size of noise and each 64 tokens, captured cleanly; the same one for what it fits."""
    weights = WeightsRequest(None, random_seed=0, shapes=ANY_SIZE)
    settings = ExportSettings(
        weights, tmp_path / "b", "any", "torch", "fp16", max_batch=4, device="cuda", verify=False
    )
    golden = GoldenNoise(export(settings), device="cuda", cuda_graphs=True)
    path: Any = golden._path
    for size, tokens, graphs in (((12, 12), 7, 1), ((12, 12), 30, 1), ((9, 31), 7, 2), ((12, 12), 7, 2)):
        config = replace(ANY_SIZE, text_tokens=tokens)
        noise, prompt = random_inputs(config, range(2), "cuda", size)
        assert golden(noise, prompt).shape == noise.shape
        assert len(path._captured) == graphs
    golden.warm_up(batches=[2], sizes=[(8, 8)])
    assert len(path._captured) == 3

"""Everything that only a CUDA device can show: `pytest -m gpu`."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from npnet_export import ExportSettings, export
from npnet_export.parity import TOLERANCES, difference
from npnet_export.weights import WeightsRequest
from npnet_kernels import latent_to_matrix, svd
from npnet_runtime import EngineBundle, GoldenNoise, NPNet, NPNetError
from npnet_runtime.errors import BackendError
from npnet_runtime.weights.models import MODELS
from support.networks import noise_and_prompts

pytestmark = pytest.mark.gpu
KINDS = ("torch", "onnxruntime", "aoti", "tensorrt", "tensorrt-rtx")
ENGINES = [(engine, precision) for engine in KINDS for precision in ("fp32", "fp16", "bf16")]
# A module that is not installed here, or a GPU that the engine is not made for.
ABSENT = ("no CUDA provider", "cannot be imported", "it is built for compute capability")


class OnDemand(dict[tuple[str, str], EngineBundle | NPNetError]):
    """Full-size engines, each checked by its own export when first asked for; or why there is none."""

    def __init__(self, weights: WeightsRequest, folder: Path) -> None:
        super().__init__()
        self._weights, self._folder = weights, folder

    def __missing__(self, key: tuple[str, str]) -> EngineBundle | NPNetError:
        target = self._folder / "-".join(key)
        try:
            self[key] = export(ExportSettings(self._weights, target, "sdxl", *key))
        except NPNetError as error:
            self[key] = error
        return self[key]


@pytest.fixture(scope="module")
def bundles(sdxl_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> OnDemand:
    weights = WeightsRequest(MODELS["sdxl"], str(sdxl_checkpoint))
    return OnDemand(weights, tmp_path_factory.mktemp("gpu-engines"))


@pytest.fixture(params=ENGINES, ids=lambda pair: "-".join(pair))
def bundle(request: pytest.FixtureRequest, bundles: OnDemand) -> EngineBundle:
    made = bundles[request.param]
    if isinstance(made, NPNetError) and any(reason in str(made) for reason in ABSENT):
        pytest.skip(str(made))
    if isinstance(made, NPNetError):
        raise made
    return made


@pytest.fixture
def golden(bundle: EngineBundle) -> GoldenNoise:
    return GoldenNoise(bundle, device="cuda")


@pytest.fixture
def inputs(sdxl_network: NPNet) -> tuple[Tensor, Tensor]:
    noise, prompts = noise_and_prompts(sdxl_network.config, 4, seed=5)
    return noise.cuda(), prompts.cuda()


def test_agrees_with_the_cpu(golden: GoldenNoise, sdxl_network: NPNet, inputs: tuple[Tensor, Tensor]) -> None:
    noise, prompts = (tensor.cpu() for tensor in inputs)
    exact = sdxl_network(noise, prompts, svd(latent_to_matrix(noise)))
    statistic, tolerance = TOLERANCES[golden.bundle.manifest.precision]
    assert difference(statistic, golden(*inputs).cpu(), exact) <= tolerance


def test_fixture(golden: GoldenNoise, fixture: dict[str, Tensor]) -> None:
    given = golden(fixture["noise"].cuda(), fixture["prompt_embeds"].cuda()).cpu()
    # canonical signs here, LAPACK's in the fixture: they differ by up to 1.7e-3, and precision adds its own
    allowed = {"fp32": 3e-3, "fp16": 2e-2, "bf16": 1e-1}[golden.bundle.manifest.precision]
    torch.testing.assert_close(given, fixture["golden"], atol=allowed, rtol=0)


def test_prepared_noise_gives_the_same_bits(golden: GoldenNoise, inputs: tuple[Tensor, Tensor]) -> None:
    noise, prompts = inputs
    assert torch.equal(golden(golden.prepare(noise), prompts), golden(noise, prompts))


def test_kernels_agree_with_their_references(bundles: OnDemand, inputs: tuple[Tensor, Tensor]) -> None:
    ours, plain = (GoldenNoise(bundles["torch", "fp32"], kernels=kernels) for kernels in ("auto", "torch"))
    torch.testing.assert_close(ours(*inputs), plain(*inputs), atol=5e-5, rtol=0)


def test_more_callers_than_contexts(golden: GoldenNoise, inputs: tuple[Tensor, Tensor]) -> None:
    """Ten threads, each on a stream of its own: more than any engine keeps contexts for."""
    expected = golden(*inputs)
    torch.cuda.synchronize()

    def call(_: int) -> Tensor:
        with torch.cuda.stream(torch.cuda.Stream()):
            given = golden(*inputs)
            torch.cuda.current_stream().synchronize()
            return given

    with ThreadPoolExecutor(10) as pool:
        assert all(torch.equal(given, expected) for given in pool.map(call, range(30)))


def test_works_on_the_callers_stream(golden: GoldenNoise, inputs: tuple[Tensor, Tensor]) -> None:
    expected = golden(*inputs)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        # the inputs are written late on this stream: a result read from another stream would miss them
        noise, prompts = (torch.zeros_like(tensor) for tensor in inputs)
        torch.cuda._sleep(20_000_000)
        noise.copy_(inputs[0])
        prompts.copy_(inputs[1])
        given = golden(noise, prompts)
        copy = given.clone()
    stream.synchronize()
    assert torch.equal(copy, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs(golden: GoldenNoise, inputs: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    noise, prompts = (tensor.to(dtype) for tensor in inputs)
    given = golden(noise, prompts)
    assert given.dtype == dtype
    assert given.isfinite().all()


def test_too_large_a_batch(golden: GoldenNoise, inputs: tuple[Tensor, Tensor]) -> None:
    noise, prompts = inputs
    many = noise[:1].expand(2000, -1, -1, -1)
    torch.cuda.empty_cache()  # what torch keeps of earlier tests would serve it
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (200 << 20)) / total)
    try:
        with pytest.raises(BackendError, match="memory"):
            golden(many, prompts[:1])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert golden(noise, prompts).isfinite().all()


def test_stream_that_was_destroyed(bundles: OnDemand) -> None:
    """In a process of its own: what CUDA says of it may end all further work there."""
    script = """
import sys, torch, npnet_runtime
golden = npnet_runtime.GoldenNoise(sys.argv[1], device="cuda", cuda_graphs=False)
config = golden.bundle.manifest.config
noise, prompt = (torch.randn(1, *s, device="cuda") for s in (config.latent_shape, config.text_shape))
handle = torch.zeros(1, dtype=torch.int64)
cudart = torch.cuda.cudart()
assert int(cudart.cudaStreamCreate(handle.data_ptr())) == 0
stream = torch.cuda.ExternalStream(handle.item())
assert int(cudart.cudaStreamDestroy(handle.item())) == 0
try:
    with torch.cuda.stream(stream):
        golden(noise, prompt)
except npnet_runtime.NPNetError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(bundles["torch", "fp32"].path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "destroyed?" in result.stdout, result.stderr


def test_fork_after_cuda_was_initialised(bundles: OnDemand) -> None:
    torch.cuda.init()
    child = os.fork()
    if child == 0:
        try:
            GoldenNoise(bundles["torch", "fp32"])
        except BackendError as error:
            os._exit(0 if "'spawn'" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

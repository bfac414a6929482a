"""NPNet's prompt half, all of it by kernels, against its layers in float32."""

from pathlib import Path

import pytest
import torch

from npnet_export import ExportSettings, export
from npnet_export.weights import WeightsRequest
from npnet_kernels.backends import interpreting
from npnet_runtime import GoldenNoise
from npnet_runtime.networks.fused import FusedPromptHalf
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.registry import network_from_state
from npnet_runtime.weights import checkpoint
from support.networks import SHAPES, SMALL, noise_and_prompts, parity_state

# Relative to the largest value, after a dozen layers.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def check(config: NPNetConfig, dtype: torch.dtype, device: torch.device, batch: int) -> None:
    network = network_from_state(config, parity_state(config)).eval()
    inputs = noise_and_prompts(config, batch)
    with torch.inference_mode():
        exact = network.prompt_half(*inputs)
        half = network.to_precision(dtype).to(device).prompt_half
        given = FusedPromptHalf(half, "triton").to(device)(*(tensor.to(device) for tensor in inputs))
    for one, other in zip(given, exact, strict=True):
        assert (one.cpu() - other).abs().max() <= TOLERANCES[dtype] * other.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape(name: str, dtype: torch.dtype, device: torch.device) -> None:
    if dtype != torch.float32 and name not in ("small", "three stages") and interpreting():
        pytest.skip("the interpreter takes seconds; sizes are tried in float32")
    check(SHAPES[name], dtype, device, batch=2)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_published_size(dtype: torch.dtype, device: torch.device, full_size: bool) -> None:
    if not full_size:
        pytest.skip("too much for the interpreter")
    check(NPNetConfig(), dtype, device, batch=3)


def test_a_result_does_not_depend_on_its_batch(device: torch.device, full_size: bool) -> None:
    """To the last bit, in batches that have other tiles."""
    if not full_size:
        pytest.skip("NumPy's matrix product, which the interpreter uses, depends on a row's place")
    config = NPNetConfig()
    network = network_from_state(config, parity_state(config)).eval().to_precision(torch.float16).to(device)
    half = FusedPromptHalf(network.prompt_half, "triton").to(device)
    noise, prompts = (tensor.to(device) for tensor in noise_and_prompts(config, 32))
    with torch.inference_mode():
        together = half(noise, prompts)
        for batch in (1, 2, 5):
            alone = half(noise[:batch], prompts[:batch])
            assert all(torch.equal(one, both[:batch]) for one, both in zip(alone, together, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_golden_noise(precision: str, device: torch.device, tmp_path: Path) -> None:
    """All the way: the engine runs the kernels that were asked for, and says so."""
    checkpoint.write(tmp_path / "small.safetensors", parity_state(SMALL), SMALL)
    weights = WeightsRequest(None, str(tmp_path / "small.safetensors"))
    settings = ExportSettings(weights, tmp_path / "engine", "small", "torch", precision, device=str(device))
    bundle = export(settings)
    inputs = tuple(tensor.to(device) for tensor in noise_and_prompts(SMALL, 2))
    kernels, layers = (GoldenNoise(bundle, device=device, kernels=kind) for kind in ("triton", "torch"))
    assert "prompt half: triton (requested)" in kernels.report()
    assert "prompt half: torch (requested)" in layers.report()
    # Prepared ahead: the interpreter runs one kernel at a time, and the halves are on two threads.
    given, expected = kernels(kernels.prepare(inputs[0]), inputs[1]), layers(*inputs)
    assert not torch.equal(given, expected)
    assert (given - expected).abs().max() <= {"fp32": 2e-5, "bf16": 5e-2}[precision]

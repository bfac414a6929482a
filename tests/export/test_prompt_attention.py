"""Engines of the second kind of network."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from npnet_export import ExportError, ExportSettings, export
from npnet_export.verification import reference_network, verify
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.errors import BundleError
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import network_from_state
from npnet_runtime.weights import checkpoint
from support.networks import SMALL_ATTENTION, noise_and_prompts


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "attention.safetensors"
    checkpoint.write(path, random_state(SMALL_ATTENTION, 0), SMALL_ATTENTION)
    return path


@pytest.fixture(scope="module")
def bundles(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], EngineBundle]:
    """Each engine, built when it is first asked for."""
    folder = tmp_path_factory.mktemp("engines")
    request = WeightsRequest(None, str(weights))

    @functools.cache
    def build(engine: str) -> EngineBundle:
        settings = ExportSettings(request, folder / engine, "own", engine=engine, max_batch=3, device="cpu")
        return export(settings)

    return build


@pytest.mark.parametrize(
    "engine", ["torch", "onnxruntime", "openvino", pytest.param("aoti", marks=pytest.mark.slow)]
)
class TestEngine:
    def test_agrees_with_the_network(self, engine: str, bundles: Callable[[str], EngineBundle]) -> None:
        golden = GoldenNoise(bundles(engine), device="cpu")
        noise, prompts = noise_and_prompts(SMALL_ATTENTION, 7)  # more than one chunk of 3
        given = golden(noise, prompts)
        expected = network_from_state(SMALL_ATTENTION, random_state(SMALL_ATTENTION, 0))(noise, prompts)
        torch.testing.assert_close(given, expected, atol=5e-5, rtol=0)
        assert torch.equal(golden(golden.prepare(noise), prompts), given)
        assert golden.prepare(noise).spectral is None
        report = golden.report()
        assert "signs" not in report
        assert "tolerance" in report

    def test_verify(self, engine: str, bundles: Callable[[str], EngineBundle]) -> None:
        network = reference_network(bundles(engine), None, None)
        found = verify(bundles(engine), network, torch.device("cpu"), 3)
        found.require()
        assert found.worst.cosine > 0.999

    def test_one_image_per_prompt_and_policies(
        self, engine: str, bundles: Callable[[str], EngineBundle]
    ) -> None:
        golden = GoldenNoise(bundles(engine), device="cpu", tokens="truncate", resolution="transfer")
        noise = torch.randn(4, 4, 24, 16)
        prompts = torch.randn(2, 9, 12)
        given = golden(noise, prompts)
        assert given.shape == noise.shape
        assert given.isfinite().all()


def test_manifest(bundles: Callable[[str], EngineBundle], tmp_path: Path) -> None:
    manifest = bundles("onnxruntime").manifest
    assert (manifest.signs, manifest.text_weight, manifest.residual_weight) == (None, None, None)
    assert list(manifest.files) == ["network.onnx"]
    for change, says in (
        ({"signs": "as-is"}, "signs: expected null, as the network is of kind prompt-attention"),
        (
            {"config": {**SMALL_ATTENTION.to_dict(), "kind": "other"}},
            "expected the kind npnet or prompt-attention",
        ),
    ):
        folder = tmp_path / str(len(says))
        shutil.copytree(bundles("onnxruntime").path, folder)
        values = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(BundleError, match=says):
            EngineBundle.open(folder)


def test_half_precision_says_what_stays_float32(weights: Path, tmp_path: Path) -> None:
    settings = ExportSettings(
        WeightsRequest(None, str(weights)), tmp_path / "half", "own", "torch", "fp16", device="cpu"
    )
    assert "norms" in export(settings).manifest.float32_parts


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["torch", "aoti"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu(engine: str, precision: str, weights: Path, tmp_path: Path) -> None:
    request = WeightsRequest(None, str(weights))
    bundle = export(ExportSettings(request, tmp_path / "engine", "own", engine, precision, device="cuda"))
    golden = GoldenNoise(bundle, device="cuda")
    noise, prompts = (tensor.cuda() for tensor in noise_and_prompts(SMALL_ATTENTION, 5))
    expected = network_from_state(SMALL_ATTENTION, random_state(SMALL_ATTENTION, 0)).cuda()(noise, prompts)
    error = (golden(noise, prompts) - expected).square().mean().sqrt()
    assert error <= (5e-5 if precision == "fp32" else 2e-3)


def test_onnx_without_bfloat16_convolutions_says_so(weights: Path, tmp_path: Path) -> None:
    settings = ExportSettings(
        WeightsRequest(None, str(weights)),
        tmp_path / "b",
        "own",
        "onnxruntime",
        "bf16",
        device="cpu",
        verify=False,
    )
    with pytest.raises(ExportError, match="try another --precision"):
        export(settings)
    assert not (tmp_path / "b").exists()

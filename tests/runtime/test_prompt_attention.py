"""The second kind of network: its arithmetic, and everything that serves it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from npnet_export import ExportSettings, export
from npnet_export.verification import reference_network, verify
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, GoldenNoise, checkpoint
from npnet_runtime.errors import BundleError, CheckpointError, ConfigError
from npnet_runtime.networks import config_from_dict, network_for, network_from_state
from npnet_runtime.prompt_attention import PromptAttentionConfig, PromptAttentionNet, default_channels
from npnet_runtime.random_weights import random_state
from support.networks import SMALL, noise_and_prompts

SQUARE = PromptAttentionConfig(4, 16, 16, 5, 12, channels=(8, 16), heads=2)
SHAPES = {
    "square": SQUARE,
    "odd sizes": PromptAttentionConfig(3, 11, 7, 4, 6, channels=(8, 16, 16), heads=2),
    "one level": PromptAttentionConfig(1, 5, 9, 2, 8, channels=(16,), heads=4),
    "two blocks": PromptAttentionConfig(16, 8, 12, 3, 10, channels=(8, 24), blocks=2, heads=3),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "attention.safetensors"
    checkpoint.write(path, random_state(SQUARE, 0), SQUARE)
    return path


@pytest.fixture(scope="module")
def bundles(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, EngineBundle]:
    folder = tmp_path_factory.mktemp("engines")
    request = WeightsRequest(None, str(weights))
    return {
        engine: export(
            ExportSettings(request, folder / engine, "own", engine=engine, max_batch=3, device="cpu")
        )
        for engine in ("torch", "onnxruntime", "aoti")
    }


class TestNetwork:
    @pytest.mark.parametrize("name", SHAPES)
    def test_first_weights_are_the_identity(self, name: str) -> None:
        noise, prompts = noise_and_prompts(SHAPES[name], 2)
        assert torch.equal(network_for(SHAPES[name])(noise, prompts), noise)

    @pytest.mark.parametrize("name", SHAPES)
    def test_every_weight_matters(self, name: str) -> None:
        config = SHAPES[name]
        network = PromptAttentionNet(config)
        network.load_state_dict(random_state(config, 1))
        noise, prompts = noise_and_prompts(config, 2)
        golden = network(noise, prompts)
        assert golden.shape == noise.shape
        golden.square().mean().backward()
        still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert still == []

    def test_samples_do_not_mix_and_prompts_matter(self) -> None:
        network = network_from_state(SQUARE, random_state(SQUARE, 2))
        noise, prompts = noise_and_prompts(SQUARE, 3)
        whole = network(noise, prompts)
        torch.testing.assert_close(network(noise[1:2], prompts[1:2]), whole[1:2], atol=1e-5, rtol=0)
        assert (network(noise, prompts.roll(1, 0)) - whole).abs().max() > 1e-3
        # of tokens, every one
        changed = prompts.clone()
        changed[:, -1] = torch.randn(12)  # a shift alone is normalised away
        assert (network(noise, changed) - whole).abs().max() > 1e-4

    @pytest.mark.parametrize(("dtype", "rms"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
    def test_precision(self, dtype: torch.dtype, rms: float) -> None:
        # each product is rounded to 2^-11 or 2^-8 of its size, the stream between them is float32
        network = network_from_state(SQUARE, random_state(SQUARE, 3))
        noise, prompts = noise_and_prompts(SQUARE, 4)
        expected = network(noise, prompts)
        given = network_from_state(SQUARE, random_state(SQUARE, 3)).to_precision(dtype)(noise, prompts)
        error = (given - expected).square().mean().sqrt()
        assert 0 < error <= rms

    def test_default_channels(self) -> None:
        assert default_channels(16, 16) == (48, 96)
        assert default_channels(64, 96) == (24, 48, 96)
        assert default_channels(128, 128) == (16, 32, 64, 128)


class TestConfig:
    def test_round_trip(self) -> None:
        for config in (*SHAPES.values(), SMALL):
            assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"channels": (12, 16)}, "multiples of 8"),
            ({"channels": ()}, "multiples of 8"),
            ({"heads": 5}, "divisor of 16"),
            ({"heads": 0}, "positive integers"),
            ({"channels": (8, 8, 8, 8, 8, 8)}, "6 levels are too many"),
        ],
    )
    def test_contradictions(self, change: dict[str, object], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            PromptAttentionConfig.from_dict({**SQUARE.to_dict(), **change})

    def test_kinds(self) -> None:
        with pytest.raises(ConfigError, match="expected the kind npnet or prompt-attention, given 'unet'"):
            config_from_dict({**SQUARE.to_dict(), "kind": "unet"})
        with pytest.raises(ConfigError, match="expected the kind"):
            config_from_dict({})


class TestCheckpoint:
    def test_round_trip(self, weights: Path) -> None:
        read = checkpoint.read(weights)
        assert read.config == SQUARE
        assert checkpoint.own_config(weights) == SQUARE
        noise, prompts = noise_and_prompts(SQUARE, 1)
        expected = network_from_state(SQUARE, random_state(SQUARE, 0))(noise, prompts)
        assert torch.equal(read.network()(noise, prompts), expected)

    def test_of_the_other_kind(self, weights: Path) -> None:
        with pytest.raises(CheckpointError, match="kind: expected npnet, given prompt-attention"):
            checkpoint.read(weights, SMALL)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "aoti"])
class TestEngine:
    def test_agrees_with_the_network(self, engine: str, bundles: dict[str, EngineBundle]) -> None:
        golden = GoldenNoise(bundles[engine], device="cpu")
        noise, prompts = noise_and_prompts(SQUARE, 7)  # more than one chunk of 3
        given = golden(noise, prompts)
        expected = network_from_state(SQUARE, random_state(SQUARE, 0))(noise, prompts)
        torch.testing.assert_close(given, expected, atol=5e-5, rtol=0)
        assert torch.equal(golden(golden.prepare(noise), prompts), given)
        assert golden.prepare(noise).spectral is None
        report = golden.report()
        assert "signs" not in report
        assert "tolerance" in report

    def test_verify(self, engine: str, bundles: dict[str, EngineBundle]) -> None:
        network = reference_network(bundles[engine], None, None)
        found = verify(bundles[engine], network, torch.device("cpu"), 3)
        found.require()
        assert found.worst.cosine > 0.999

    def test_one_image_per_prompt_and_policies(self, engine: str, bundles: dict[str, EngineBundle]) -> None:
        golden = GoldenNoise(bundles[engine], device="cpu", tokens="truncate", resolution="transfer")
        noise = torch.randn(4, 4, 24, 16)
        prompts = torch.randn(2, 9, 12)
        given = golden(noise, prompts)
        assert given.shape == noise.shape
        assert given.isfinite().all()


def test_manifest(bundles: dict[str, EngineBundle], tmp_path: Path) -> None:
    manifest = bundles["onnxruntime"].manifest
    assert (manifest.signs, manifest.text_weight, manifest.residual_weight) == (None, None, None)
    assert list(manifest.files) == ["network.onnx"]
    for change, says in (
        ({"signs": "as-is"}, "signs: expected null, as the network is of kind prompt-attention"),
        ({"config": {**SQUARE.to_dict(), "kind": "other"}}, "expected the kind npnet or prompt-attention"),
    ):
        folder = tmp_path / str(len(says))
        shutil.copytree(bundles["onnxruntime"].path, folder)
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
    noise, prompts = (tensor.cuda() for tensor in noise_and_prompts(SQUARE, 5))
    expected = network_from_state(SQUARE, random_state(SQUARE, 0)).cuda()(noise, prompts)
    error = (golden(noise, prompts) - expected).square().mean().sqrt()
    assert error <= (5e-5 if precision == "fp32" else 2e-3)

"""The second kind of network: its arithmetic, configuration and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from npnet_runtime.errors import CheckpointError, ConfigError
from npnet_runtime.networks.prompt_attention import (
    PromptAttentionConfig,
    PromptAttentionNet,
    default_channels,
)
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import config_from_dict, network_for, network_from_state
from npnet_runtime.weights import checkpoint
from support.networks import SMALL, SMALL_ATTENTION, noise_and_prompts

SHAPES = {
    "square": SMALL_ATTENTION,
    "odd sizes": PromptAttentionConfig(3, 11, 7, 4, 6, channels=(8, 16, 16), heads=2),
    "one level": PromptAttentionConfig(1, 5, 9, 2, 8, channels=(16,), heads=4),
    "two blocks": PromptAttentionConfig(16, 8, 12, 3, 10, channels=(8, 24), blocks=2, heads=3),
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
        network = network_from_state(SMALL_ATTENTION, random_state(SMALL_ATTENTION, 2))
        noise, prompts = noise_and_prompts(SMALL_ATTENTION, 3)
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
        network = network_from_state(SMALL_ATTENTION, random_state(SMALL_ATTENTION, 3))
        noise, prompts = noise_and_prompts(SMALL_ATTENTION, 4)
        expected = network(noise, prompts)
        given = network_from_state(SMALL_ATTENTION, random_state(SMALL_ATTENTION, 3)).to_precision(dtype)(
            noise, prompts
        )
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
            PromptAttentionConfig.from_dict({**SMALL_ATTENTION.to_dict(), **change})

    def test_kinds(self) -> None:
        with pytest.raises(ConfigError, match="expected the kind npnet or .* given .unet."):
            config_from_dict({**SMALL_ATTENTION.to_dict(), "kind": "unet"})
        with pytest.raises(ConfigError, match="expected the kind"):
            config_from_dict({})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "attention.safetensors"
    checkpoint.write(path, random_state(SMALL_ATTENTION, 0), SMALL_ATTENTION)
    return path


class TestCheckpoint:
    def test_round_trip(self, weights: Path) -> None:
        read = checkpoint.read(weights)
        assert read.config == SMALL_ATTENTION
        assert checkpoint.own_config(weights) == SMALL_ATTENTION
        noise, prompts = noise_and_prompts(SMALL_ATTENTION, 1)
        expected = network_from_state(SMALL_ATTENTION, random_state(SMALL_ATTENTION, 0))(noise, prompts)
        assert torch.equal(read.network()(noise, prompts), expected)

    def test_of_the_other_kind(self, weights: Path) -> None:
        with pytest.raises(CheckpointError, match="kind: expected npnet, given prompt-attention"):
            checkpoint.read(weights, SMALL)

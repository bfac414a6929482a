"""The network for noise of any size: its arithmetic, its configuration, its graph."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from npnet_runtime.errors import ConfigError
from npnet_runtime.inputs.texts import random_inputs
from npnet_runtime.networks.any_size import AnySizeNet, pad, positions
from npnet_runtime.networks.any_size_config import AnySizeConfig, channels_for
from npnet_runtime.networks.graphs import NETWORK, graphs
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import config_from_dict, network_for, network_from_state
from support.networks import ANY_SIZE

PLAIN = AnySizeConfig(4, 16, 16, 5, 12, 2, 64, 40, channels=(8, 16), heads=2)
CONFIGS = {
    "all texts": ANY_SIZE,
    "one text": PLAIN,
    "one level": replace(PLAIN, channels=(16,), least_side=1),
    "two blocks": replace(PLAIN, blocks=2, latent_channels=32),
}
SIZES = [(16, 16), (7, 9), (20, 5)]


def golden(network: AnySizeNet, noise: torch.Tensor, prompt) -> torch.Tensor:
    return network(noise, prompt.embeds, **prompt.others)


def network(config: AnySizeConfig, seed: int = 0) -> AnySizeNet:
    made = network_from_state(config, random_state(config, seed))
    assert isinstance(made, AnySizeNet)
    return made


class TestNetwork:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("name", CONFIGS)
    def test_first_weights_are_the_identity(self, name: str, size: tuple[int, int]) -> None:
        noise, prompt = random_inputs(CONFIGS[name], range(2), size=size)
        assert torch.equal(golden(network_for(CONFIGS[name]), noise, prompt), noise)

    @pytest.mark.parametrize("name", CONFIGS)
    def test_every_weight_matters(self, name: str) -> None:
        net = AnySizeNet(CONFIGS[name])
        net.load_state_dict(random_state(CONFIGS[name], 1))
        golden(net, *random_inputs(CONFIGS[name], range(2))).square().mean().backward()
        still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert still == []

    @pytest.mark.parametrize("size", SIZES)
    def test_samples_do_not_mix_and_texts_matter(self, size: tuple[int, int]) -> None:
        net = network(ANY_SIZE, 2)
        noise, prompt = random_inputs(ANY_SIZE, range(3), size=size)
        whole = golden(net, noise, prompt)
        _, first = random_inputs(ANY_SIZE, [1], size=size)
        torch.testing.assert_close(golden(net, noise[1:2], first), whole[1:2], atol=1e-5, rtol=0)
        for name, tensor in {"embeds": prompt.embeds, **prompt.others}.items():
            if not name.endswith("mask"):
                changed = replace(prompt, **{name: tensor.roll(1, 0)})
                assert (golden(net, noise, changed) - whole).abs().max() > 1e-4, name

    def test_masked_tokens_are_not_there(self) -> None:
        """Whatever they hold, and however many there are; a prompt of none is one too."""
        net = network(PLAIN)
        noise, prompt = random_inputs(PLAIN, range(2))
        embeds = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[1.0] * 4 + [0.0] * 5, [0.0] * 9])
        given = net(noise, embeds, mask=mask)
        filled = embeds.masked_fill(mask[..., None] == 0, 77.0)
        torch.testing.assert_close(net(noise, filled, mask=mask), given, atol=0, rtol=0)
        torch.testing.assert_close(net(noise, embeds[:, :4], mask=mask[:, :4]), given, atol=1e-5, rtol=0)
        assert given.isfinite().all()
        assert (net(noise[1:], prompt.embeds[1:]) - given[1:]).abs().max() > 1e-4

    def test_order_of_tokens_is_the_encoders(self) -> None:
        """Attention to a set: tokens carry their place themselves."""
        net = network(PLAIN)
        noise, prompt = random_inputs(PLAIN, [0])
        torch.testing.assert_close(
            net(noise, prompt.embeds.flip(1)), net(noise, prompt.embeds), atol=1e-5, rtol=0
        )

    @pytest.mark.parametrize(("dtype", "rms"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
    def test_precision(self, dtype: torch.dtype, rms: float) -> None:
        # each product is rounded to 2^-11 or 2^-8 of its size, the stream between them is float32
        inputs = random_inputs(ANY_SIZE, range(4))
        expected = golden(network(ANY_SIZE), *inputs)
        error = (golden(network(ANY_SIZE).to_precision(dtype), *inputs) - expected).square().mean().sqrt()
        assert 0 < error <= rms


class TestPositions:
    def test_kept_for_training(self) -> None:
        with torch.inference_mode():
            kept = positions(24, 40, 8)
        assert kept is positions(24, 40, 8)
        assert not kept.is_inference()

    def test_same_place_in_every_size(self) -> None:
        """A corner is a corner: coordinates follow the sides, not the number of places."""
        small, large = positions(16, 16, 8), positions(128, 128, 8)
        assert small.shape == (20, 2, 2)
        torch.testing.assert_close(small[:2, 0, 0], large[:2, :8, :8].mean((1, 2)), atol=1e-6, rtol=0)
        assert large[0, 0, 0] == large[1, 0, 0] == -large[0, -1, -1]

    def test_aspect_and_area(self) -> None:
        wide, high = positions(64, 128, 8), positions(128, 64, 8)
        torch.testing.assert_close(wide[-2], -high[-2].T)
        torch.testing.assert_close(wide[-1], high[-1].T)
        assert positions(32, 32, 8)[-1, 0, 0] < positions(64, 64, 8)[-1, 0, 0]

    def test_of_the_noise_not_of_its_padding(self) -> None:
        padded = positions(9, 16, 8)
        assert padded.shape[1:] == (2, 2)
        assert padded[0, 1, 0] > 1  # beyond the edge

    def test_padding_keeps_noise_white(self) -> None:
        noise = torch.randn(4, 4, 61, 59, generator=torch.Generator().manual_seed(1))
        padded = pad(noise, 8)
        assert padded.shape == (4, 4, 64, 64)
        assert torch.equal(padded[:, :, :61, :59], noise)
        assert abs(padded.std().item() - 1) < 0.01


class TestConfig:
    def test_round_trip(self) -> None:
        for config in CONFIGS.values():
            assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"channels": (12, 16)}, "multiples of 8"),
            ({"heads": 5}, "divisor of 16"),
            ({"pooled_dim": -1}, "pooled_dim: expected 0 or a positive integer, given -1"),
            ({"second_dim": 8}, "second_tokens: .* given 0 of width 8"),
            ({"least_side": 1}, "least_side: expected 2 or more, as 2 levels divide by it, given 1"),
            ({"most_side": 15}, "sides: expected 2 to 15, given 16 x 16"),
            ({"most_tokens": 4}, "text_tokens: expected 4 or fewer, given 5"),
            ({"most_side": 64.0}, "bounds that are integers"),
            ({"text_dim": 0}, "positive integers"),
        ],
    )
    def test_contradictions(self, change: dict[str, object], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            AnySizeConfig.from_dict({**PLAIN.to_dict(), **change})

    def test_channels(self) -> None:
        assert channels_for(4, 128, 128) == (16, 32, 64, 128)
        assert channels_for(16, 128, 128) == (16, 32, 64, 128)
        assert channels_for(32, 32, 32) == (48, 96)
        assert channels_for(128, 64, 64) == (64, 128, 256)


class TestGraph:
    def test_bounds(self) -> None:
        graph = graphs(ANY_SIZE)[NETWORK]
        assert graph.inputs["noise"] == (16, 12, 12)  # as it is padded
        assert graph.bounds("noise") == ((16, 4, 4), (16, 32, 32))
        assert graph.bounds("positions") == ((20, 1, 1), (20, 8, 8))
        assert graph.bounds("mask") == ((1,), (40,))
        assert graph.bounds("pooled") == ((12,), (12,))

    def test_what_it_takes(self) -> None:
        graph = graphs(PLAIN)[NETWORK]
        fits = [(2, 4, 16, 20), (2, 7, 12), (2, 7), (2, 20, 8, 10)]
        assert graph.takes(fits)
        for index, wrong in [
            (0, (2, 4, 15, 20)),  # no multiple
            (0, (2, 4, 66, 20)),  # too large
            (0, (3, 4, 16, 20)),  # another batch
            (0, (2, 5, 16, 20)),  # other channels
            (1, (2, 8, 12)),  # other tokens than the mask
            (1, (2, 41, 12)),
            (3, (2, 20, 8, 8)),  # positions of another size
            (3, (2, 20, 8)),
        ]:
            assert not graph.takes([*fits[:index], wrong, *fits[index + 1 :]]), wrong

    def test_outputs(self) -> None:
        graph = graphs(PLAIN)[NETWORK]
        assert graph.output_shapes({"noise": (3, 4, 32, 18)}) == {"golden": (3, 4, 32, 18)}
        tiny = graphs(replace(PLAIN, latent_height=2, latent_width=2))[NETWORK]
        assert tiny.traced()["positions"] == (20, 2, 2)  # a length of 1 would be fixed

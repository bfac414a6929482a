"""The network of a training run: products in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from npnet_kernels import latent_to_matrix, svd
from npnet_runtime.networks.registry import network_for
from npnet_training.training.networks import autocast_products
from support.networks import SMALL, SMALL_ATTENTION, noise_and_prompts, parity_state


def gradients(network: nn.Module, noise: Tensor, prompts: Tensor) -> dict[str, Tensor]:
    network(noise, prompts, svd(latent_to_matrix(noise))).square().mean().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_gradients_are_float32_and_close() -> None:
    """Of the widths of a small network; a gradient may be wrong by a few roundings to 8 bits, not more."""
    exact, halved = (network_for(SMALL) for _ in range(2))
    for network in (exact, halved):
        network.load_state_dict(parity_state(SMALL))
    autocast_products(halved, "cpu")
    rows: list[torch.dtype] = []
    for block in halved.prompt_half.swin.stages[0]:
        block.register_forward_hook(lambda module, given, made: rows.append(made.dtype))
    noise, prompts = noise_and_prompts(SMALL, 3)
    expected, found = gradients(exact, noise, prompts), gradients(halved, noise, prompts)
    assert set(rows) == {torch.bfloat16}
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32, name
        wrong = (gradient - expected[name]).norm() / expected[name].norm()
        assert wrong < 0.1, f"{name}: {wrong}"
    products = "prompt_half.swin.stages.0.0.mlp.fc1.weight"
    assert not torch.equal(found[products], expected[products]), "the products were not in bfloat16"


@pytest.mark.parametrize("config", [SMALL, SMALL_ATTENTION])
@pytest.mark.parametrize("training", [True, False])
def test_golden_noise_is_float32(config, training: bool) -> None:
    network = network_for(config).train(training)
    noise, prompts = noise_and_prompts(config, 2)
    factors = svd(latent_to_matrix(noise))
    exact = network(noise, prompts, factors)
    autocast_products(network, "cpu")
    golden = network(noise, prompts, factors)
    assert golden.dtype == torch.float32
    assert (golden - exact).square().mean().sqrt() < 2e-2

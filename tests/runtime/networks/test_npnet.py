"""The network against the fixture of the original implementation, and against the published computation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baseline import PublishedNPNet
from npnet_kernels import SVD, latent_to_matrix, svd
from npnet_runtime import NPNet, NPNetConfig
from npnet_runtime.networks.npnet import nearest_index
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import network_from_state
from support.networks import SHAPES, SMALL, noise_and_prompts, parity_state

# Two orders of summing 157,696 products in float32 differ by up to 3e-5 in a value of order 1; everything
# else agrees to 1e-5. The issue's own bound.
FIXTURE = 5e-5
# Small networks sum less.
SMALL_SUMS = 2e-5


def expand(residual: Tensor, height: int) -> Tensor:
    """Repeat the rows of the compact residual over the latent's."""
    return residual.index_select(2, nearest_index(residual.shape[2], height))


@pytest.fixture(scope="module")
def factors(fixture: dict[str, Tensor]) -> SVD:
    return SVD(fixture["U"], fixture["s"], fixture["Vh"])


class TestFixture:
    """Every intermediate result of the original, with its factors given."""

    def test_spectral_half(self, sdxl_network: NPNet, fixture: dict[str, Tensor], factors: SVD) -> None:
        spectral = sdxl_network.spectral_half(fixture["noise"], factors)
        torch.testing.assert_close(spectral, fixture["spectral"], atol=FIXTURE, rtol=0)

    def test_text_and_residual(self, sdxl_network: NPNet, fixture: dict[str, Tensor]) -> None:
        scale_shift, residual = sdxl_network.prompt_half(fixture["noise"], fixture["prompt_embeds"])
        scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
        text = torch.nn.functional.group_norm(fixture["noise"], 1, eps=1e-6) * (1 + scale) + shift
        torch.testing.assert_close(text, fixture["text_embedding"], atol=FIXTURE, rtol=0)
        assert residual.shape == (2, 4, 7, 128)
        torch.testing.assert_close(expand(residual, 128), fixture["residual"], atol=FIXTURE, rtol=0)

    def test_golden(self, sdxl_network: NPNet, fixture: dict[str, Tensor], factors: SVD) -> None:
        golden = sdxl_network(fixture["noise"], fixture["prompt_embeds"], factors)
        torch.testing.assert_close(golden, fixture["golden"], atol=FIXTURE, rtol=0)

    def test_end_to_end_with_our_svd(self, sdxl_network: NPNet, fixture: dict[str, Tensor]) -> None:
        ours = svd(latent_to_matrix(fixture["noise"]), signs="as-is")
        golden = sdxl_network(fixture["noise"], fixture["prompt_embeds"], ours)
        # LAPACK builds differ in a few signs, which move single values by 3e-4
        torch.testing.assert_close(golden, fixture["golden"], atol=1e-3, rtol=0)

    def test_two_svd_routines_agree(self, sdxl_network: NPNet, fixture: dict[str, Tensor]) -> None:
        matrix = latent_to_matrix(fixture["noise"])
        first, second = (
            sdxl_network(fixture["noise"], fixture["prompt_embeds"], svd(matrix, solver=solver))
            for solver in ("lapack", "gram")
        )
        torch.testing.assert_close(first, second, atol=1e-4, rtol=0)

    def test_number_of_parameters(self, sdxl_network: NPNet) -> None:
        # the published count without the ImageNet head and the BatchNorm
        assert sum(p.numel() for p in sdxl_network.parameters()) == 30_470_427 - 769_000 - 512

    def test_number_of_parameters_hunyuan(self) -> None:
        network = NPNet(NPNetConfig(text_dim=1024))
        assert sum(p.numel() for p in network.parameters()) == 29_839_643 - 769_000 - 512


@pytest.mark.parametrize("name", SHAPES)
def test_agrees_with_the_published_computation(name: str) -> None:
    """Another implementation of the paper, written another way, at every shape."""
    config = SHAPES[name]
    state = random_state(config, 1)
    network, published = network_from_state(config, state), PublishedNPNet(config, state)
    noise, prompts = noise_and_prompts(config, 3)
    factors = published.unet_svd.svd(noise)
    golden = network(noise, prompts, factors)
    assert golden.shape == noise.shape
    torch.testing.assert_close(golden, published(noise, prompts), atol=SMALL_SUMS, rtol=0)


def test_a_sample_does_not_depend_on_its_neighbours(small_network: NPNet) -> None:
    noise, prompts = noise_and_prompts(SMALL, 4)
    factors = svd(latent_to_matrix(noise))
    together = small_network(noise, prompts, factors)
    alone = small_network(noise[2:3], prompts[2:3], SVD(*(part[2:3] for part in factors)))
    torch.testing.assert_close(together[2:3], alone, atol=SMALL_SUMS, rtol=0)


@pytest.mark.parametrize(("dtype", "rms"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_half_precision(dtype: torch.dtype, rms: float) -> None:
    state = parity_state(SMALL)
    network, exact = network_from_state(SMALL, state).to_precision(dtype), network_from_state(SMALL, state)
    noise, prompts = noise_and_prompts(SMALL, 4)
    factors = svd(latent_to_matrix(noise))
    error = network(noise, prompts, factors) - exact(noise, prompts, factors)
    assert 0 < error.square().mean().sqrt() <= rms
    assert network.prompt_half.swin.dtype == network.spectral_head.qkv.weight.dtype == dtype
    assert network.prompt_half.swin.norm.weight.dtype == torch.float32
    assert exact.prompt_half.swin.dtype == torch.float32, "the weights of the original were changed"


def test_trains(small_network: NPNet) -> None:
    """Gradients reach every parameter, through halves and mixing weights."""
    network = network_from_state(SMALL, {k: v.clone() for k, v in small_network.state_dict().items()})
    network.requires_grad_()
    noise, prompts = noise_and_prompts(SMALL, 2)
    network(noise, prompts, svd(latent_to_matrix(noise))).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not silent


@pytest.mark.parametrize(("source", "target"), [(128, 224), (7, 128), (768, 128), (20, 28), (3, 100)])
def test_nearest_index(source: int, target: int) -> None:
    values = torch.randn(1, 1, source)
    expected = torch.nn.functional.interpolate(values, size=target, mode="nearest")
    assert torch.equal(values[..., nearest_index(source, target)], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_frozen_halves_keep_every_bit(dtype: torch.dtype) -> None:
    half = network_from_state(SMALL, parity_state(SMALL)).to_precision(dtype).prompt_half
    noise, prompts = noise_and_prompts(SMALL, 2)
    with torch.inference_mode():
        expected = half(noise, prompts)
        names = half.state_dict().keys()
        given = half.freeze()(noise, prompts)
    assert half.state_dict().keys() == names
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))
    half.to_rgb.weight.data.zero_()  # what is frozen is not computed again
    assert torch.equal(half(noise, prompts)[1], expected[1])

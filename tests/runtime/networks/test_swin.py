"""The index arithmetic of the Swin Transformer."""

from __future__ import annotations

import pytest
import torch

from npnet_runtime.networks.npnet_config import SwinConfig
from npnet_runtime.networks.swin import LayerNorm, SwinTransformer, inverse, shift_mask, window_order

SIDES = [(14, 7, 0), (14, 7, 3), (10, 5, 2), (6, 2, 1), (7, 7, 0)]


@pytest.mark.parametrize(("side", "window", "shift"), SIDES)
def test_window_order_is_roll_and_partition(side: int, window: int, shift: int) -> None:
    image = torch.arange(side * side).view(side, side)
    rolled = torch.roll(image, (-shift, -shift), (0, 1))
    windows = [
        rolled[y : y + window, x : x + window].flatten()
        for y in range(0, side, window)
        for x in range(0, side, window)
    ]
    assert torch.equal(window_order(side, window, shift), torch.cat(windows))


@pytest.mark.parametrize(("side", "window", "shift"), SIDES)
def test_inverse(side: int, window: int, shift: int) -> None:
    order = window_order(side, window, shift)
    assert torch.equal(order[inverse(order)], torch.arange(side * side))


@pytest.mark.parametrize(("side", "window", "shift"), [s for s in SIDES if s[2]])
def test_mask_separates_what_wrapped_around(side: int, window: int, shift: int) -> None:
    """Two tokens of a shifted window may attend iff neither wrapped around the edge apart from the other."""
    order = window_order(side, window, shift).view(-1, window * window)
    mask = shift_mask(side, window, shift)[:, 0]
    for tokens, apart in zip(order, mask, strict=True):
        y, x = tokens // side, tokens % side
        # a window spans less than `window` rows of the image unless it wraps
        wraps = ((y[:, None] - y).abs() >= window) | ((x[:, None] - x).abs() >= window)
        assert torch.equal(apart, wraps)


def test_builds_on_the_meta_device() -> None:
    """Parameters without memory, constants all the same."""
    with torch.device("meta"):
        swin = SwinTransformer(SwinConfig())
    assert all(parameter.is_meta for parameter in swin.parameters())
    assert not any(buffer.is_meta for buffer in swin.buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_in_training_is_that_of_inference(dtype: torch.dtype) -> None:
    """One kernel widens by itself, the other is given float32: values and gradients agree to a rounding."""
    torch.manual_seed(0)
    norm = LayerNorm(96)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 7, 96).mul(3).add(1).to(dtype)
    found = []
    for training in (True, False):
        rows = x.clone().requires_grad_()
        norm.train(training).zero_grad()
        made = norm(rows)
        assert made.dtype == dtype
        made.square().sum().backward()
        found.append((made, rows.grad, norm.weight.grad.clone()))
    for trained, inferred in zip(*found, strict=True):
        scale = inferred.abs().max().item()
        torch.testing.assert_close(
            trained, inferred, rtol=0, atol=scale * (2e-2 if dtype == torch.bfloat16 else 1e-6)
        )

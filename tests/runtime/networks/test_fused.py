"""The prompt half by kernels' references: the same network, sizes it holds, what an exporter sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from npnet_kernels import backends
from npnet_runtime.networks.fused import FusedPromptHalf, choose_form, fused_obstacle
from npnet_runtime.networks.npnet_config import NPNetConfig, SwinConfig
from npnet_runtime.networks.registry import network_from_state
from support.networks import SHAPES, SMALL, noise_and_prompts, parity_state

CUDA = torch.device("cuda")
# Relative to the largest value. The layers round to half precision between them, the operators do not.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 6e-3, torch.bfloat16: 5e-2}


def network(config: NPNetConfig, dtype: torch.dtype = torch.float32) -> nn.Module:
    return network_from_state(config, parity_state(config)).to_precision(dtype).eval()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", SHAPES)
def test_same_network(name: str, dtype: torch.dtype) -> None:
    half = network(SHAPES[name], dtype).prompt_half
    inputs = noise_and_prompts(SHAPES[name], 2)
    with torch.inference_mode():
        expected = half(*inputs)
        given = FusedPromptHalf(half)(*inputs)
    for one, other in zip(given, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() <= TOLERANCES[dtype] * other.abs().max()


def test_half_precision_is_no_coarser_than_in_layers() -> None:
    """Half precision is rounded less often than between layers, not more."""
    inputs = noise_and_prompts(SMALL, 4)
    with torch.inference_mode():
        exact = network(SMALL).prompt_half(*inputs)[1]
        half = network(SMALL, torch.bfloat16).prompt_half
        layers = (half(*inputs)[1] - exact).square().mean()
        assert (FusedPromptHalf(half)(*inputs)[1] - exact).square().mean() <= 1.1 * layers


def test_blocks_have_the_names_of_the_layers() -> None:
    half = network(SMALL).prompt_half
    names = {name for name, _ in half.named_modules()}
    own = {name for name, _ in FusedPromptHalf(half).swin.named_modules(prefix="swin")}
    blocks = {name for name in own if "stages" in name or "merges" in name}
    blocks = {name for name in blocks if not name.endswith((".block", ".merging")) and ".block." not in name}
    assert (
        {"swin.stages.1.1", "swin.merges.0"} <= {name for name in blocks if ".merging." not in name} <= names
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"image_size": 288, "window_size": 9}, "tokens of a window 81"),
        ({"embed_dim": 384, "num_heads": (8, 16, 32, 64)}, "embed_dim 384"),
        ({"num_heads": (1, 6, 12, 24)}, "channels of a head 96"),
        ({"depths": (2,), "num_heads": (3,)}, "side of the last map 56"),
    ],
)
def test_sizes_beyond_the_kernels(change: dict, said: str | None) -> None:
    obstacle = fused_obstacle(replace(SwinConfig(), **change))
    assert obstacle is None if said is None else said in str(obstacle)


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_triton", lambda: True)
    assert choose_form(SwinConfig(), CUDA).backend == "triton"
    assert choose_form(SwinConfig(), CUDA, "torch").backend == "torch"
    assert choose_form(SwinConfig(), torch.device("cpu")).backend == "torch"
    beyond = choose_form(replace(SwinConfig(), image_size=288, window_size=9), CUDA)
    assert "torch (the kernels do not hold its Swin Transformer: tokens of a window 81" in str(beyond)
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    assert "Triton 3.6 or newer is not installed" in str(choose_form(SwinConfig(), CUDA))


def test_exported_with_any_batch() -> None:
    half = FusedPromptHalf(network(SMALL).prompt_half)
    batch = {0: torch.export.Dim("batch", max=8)}
    with torch.no_grad():
        program = torch.export.export(half, noise_and_prompts(SMALL, 2), dynamic_shapes=(batch, batch))
        targets = [str(node.target) for node in program.graph.nodes]
        blocks = sum(SMALL.swin.depths)
        assert targets.count("npnet.window_attention.default") == blocks
        assert targets.count("npnet.fused_linear.default") == 3 * blocks + len(SMALL.swin.depths) - 1
        inputs = noise_and_prompts(SMALL, 5, seed=1)
        for given, expected in zip(program.module()(*inputs), half(*inputs), strict=True):
            torch.testing.assert_close(given, expected)

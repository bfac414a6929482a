"""What `kernels.py` measures of the prompt half: all of it, and the two kernels that most of it is."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels_cases import Case, Sizes, compiled_if_on_a_gpu, draw, maybe
from npnet_kernels.attention.window_attention import window_attention
from npnet_kernels.linear.fused_linear import fused_linear
from npnet_runtime.networks.fused import FusedPromptHalf
from npnet_runtime.networks.npnet import NPNet, PromptHalf
from npnet_runtime.networks.npnet_config import NPNetConfig, SwinConfig
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import network_from_state

SMALL_SWIN = SwinConfig(28, 2, 7, 8, (2, 2), (2, 4), 2)
WINDOW = 49  # tokens


def prompt_half_case(batch: int, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """From noise and prompt to the compact residual, beside PyTorch's layers, with random weights."""
    config = NPNetConfig()
    if sizes != Sizes():
        config = NPNetConfig(4, sizes.latent, sizes.latent, sizes.tokens, sizes.dim, swin=SMALL_SWIN)
    noise = draw(batch, *config.latent_shape, seed=batch)
    prompts = draw(batch, *config.text_shape, seed=1)
    exact = _half(config, torch.float32, torch.device("cpu"))
    half = _half(config, dtype, device)
    fused = FusedPromptHalf(_half(config, dtype, device), "triton").to(device)
    operands = (noise.to(device), prompts.to(device))

    def residual(module: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode():
                return module(*operands)[1]

        return run

    rivals = {"pytorch": residual(half)}
    if (compiled := compiled_if_on_a_gpu(half, device)) is not None:
        rivals["torch.compile"] = residual(compiled)
    with torch.inference_mode():
        wanted = exact(noise, prompts)[1]
    weights = sum(p.numel() * p.element_size() for p in half.parameters())
    moved = weights + batch * (noise[0].nbytes + prompts[0].nbytes + wanted[0].nbytes)
    return Case(
        "prompt_half", batch, residual(fused), rivals, lambda: wanted.double(),
        {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.2}[dtype], moved, 0,
    )  # fmt: skip


def attention_case(batch: int, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """The first launch of a block of the third stage, which has most of the blocks."""
    windows, heads, width = (4, 12, 384) if sizes == Sizes() else (2, 2, 16)
    tokens, head = windows * WINDOW, width // heads
    x = draw(batch, tokens, width, seed=batch)
    index = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
    weight, bias = draw(3 * width, width, seed=1) / width**0.5, 0.1 * draw(3 * width, seed=2)
    norm = 1 + 0.1 * draw(width, seed=3), 0.1 * draw(width, seed=4)
    score_bias = draw(windows, heads, WINDOW, WINDOW, seed=5)

    def composition(
        x: Tensor,
        index: Tensor,
        gain: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor,
        score_bias: Tensor,
    ) -> Tensor:
        rows = F.layer_norm(x.index_select(1, index), (width,), gain, offset)
        qkv = F.linear(rows, weight, bias).view(-1, windows, WINDOW, 3, heads, head)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)
        return F.scaled_dot_product_attention(q, k, v, score_bias).transpose(2, 3).reshape(x.shape)

    def on_device(operands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in operands)

    everything = (x, index, *norm, weight, bias, score_bias)
    operands = on_device(everything)
    ours = (operands[0], operands[1].int(), *operands[2:6], score_bias.to(device))
    compiled = compiled_if_on_a_gpu(composition, device)
    return Case(
        "window_attention", batch, lambda: window_attention(*ours, backend="triton"),
        {"pytorch": lambda: composition(*operands), **maybe(compiled, *operands)},
        lambda: composition(*(t.double() if t.is_floating_point() else t for t in everything)),
        _tolerance(dtype), sum(t.nbytes for t in ours) + operands[0].nbytes,
        2 * batch * tokens * width * (3 * width + 2 * WINDOW),
    )  # fmt: skip


def linear_case(batch: int, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """Norm, first product of the MLP and GELU of a block of the third stage."""
    tokens, width = (196, 384) if sizes == Sizes() else (20, 24)
    x = draw(batch, tokens, width, seed=batch)
    weight, bias = draw(4 * width, width, seed=1) / width**0.5, 0.1 * draw(4 * width, seed=2)
    norm = 1 + 0.1 * draw(width, seed=3), 0.1 * draw(width, seed=4)

    def composition(x: Tensor, gain: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(F.linear(F.layer_norm(x, (width,), gain, offset), weight, bias))

    everything = (x, *norm, weight, bias)
    operands = tuple(t.to(device, dtype) for t in everything)
    given, gain, offset, products, constants = operands
    compiled = compiled_if_on_a_gpu(composition, device)

    def ours() -> Tensor:
        return fused_linear(given, products, constants, norm=(gain, offset), gelu=True, backend="triton")

    return Case(
        "fused_linear", batch, ours,
        {"pytorch": lambda: composition(*operands), **maybe(compiled, *operands)},
        lambda: composition(*(t.double() for t in everything)), _tolerance(dtype),
        sum(t.nbytes for t in operands) + 4 * given.nbytes, 8 * batch * tokens * width * width,
    )  # fmt: skip


MAKERS: dict[str, Callable[[int, Sizes, torch.device, torch.dtype], Case]] = {
    "prompt_half": prompt_half_case,
    "window_attention": attention_case,
    "fused_linear": linear_case,
}


def _half(config: NPNetConfig, dtype: torch.dtype, device: torch.device) -> PromptHalf:
    network = cast(NPNet, network_from_state(config, random_state(config, 0)))
    return network.to_precision(dtype).to(device).eval().prompt_half.freeze()


def _tolerance(dtype: torch.dtype) -> float:
    return {torch.float32: 1e-4, torch.float16: 1.5e-2, torch.bfloat16: 0.12}[dtype]

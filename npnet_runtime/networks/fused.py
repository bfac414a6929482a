"""The prompt half of NPNet by kernels: a few launches a block, where the layers of PyTorch are dozens.

Same weights, same result to rounding; for inference on a GPU. A block is four launches: attention with the
norm and the product before it, and the three other products with what stands around them.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from npnet_kernels import text_affine
from npnet_kernels.attention.window_attention import MOST_HEAD_WIDTH, MOST_WINDOW_TOKENS, window_attention
from npnet_kernels.backends import Backend as Kernels
from npnet_kernels.backends import BackendChoice, choose_here
from npnet_kernels.embedding.embed_patches import MOST_WIDTH, embed_patches
from npnet_kernels.features.residual_map import MOST_SIDE, residual_map
from npnet_kernels.linear.fused_linear import fused_linear
from npnet_kernels.reconstruction.reference import GROUP_NORM_EPS
from npnet_runtime.networks.npnet import PromptHalf
from npnet_runtime.networks.npnet_config import SwinConfig
from npnet_runtime.networks.swin import LayerNorm, PatchMerging, SwinBlock, SwinTransformer


def fused_obstacle(config: SwinConfig) -> str | None:
    """Why the kernels cannot hold a Swin Transformer of this size; None if they can."""
    limits = {
        "embed_dim": (config.embed_dim, MOST_WIDTH),
        "tokens of a window": (min(config.window_size, config.resolution(0)) ** 2, MOST_WINDOW_TOKENS),
        "side of the last map": (config.feature_size, MOST_SIDE),
        "channels of a head": (
            max(config.dim(stage) // heads for stage, heads in enumerate(config.num_heads)),
            MOST_HEAD_WIDTH,
        ),
    }
    beyond = [f"{name} {value} (at most {most})" for name, (value, most) in limits.items() if value > most]
    return ", ".join(beyond) or None


def choose_form(config: SwinConfig, device: torch.device, kernels: Kernels = "auto") -> BackendChoice:
    """Whether the prompt half runs by kernels (`"triton"`) or by PyTorch's layers (`"torch"`), and why.

    Args:
        config: of the Swin Transformer.
        device: that holds the network.
        kernels: what was asked for; see `npnet_kernels.choose_backend`.
    """
    chosen = choose_here(kernels, device)
    obstacle = fused_obstacle(config)
    if chosen.backend == "triton" and obstacle:
        return BackendChoice("torch", f"the kernels do not hold its Swin Transformer: {obstacle}")
    return chosen


class FusedPromptHalf(nn.Module):
    """`PromptHalf` in eval mode, with its weights.

    Blocks and patch mergings have the names that they have there, so that their results can be compared.

    Args:
        half: whose weights are used; it is frozen, see `PromptHalf.freeze`.
        kernels: which implementation of the operators runs; see `npnet_kernels.choose_backend`.
    """

    pixel_index: Tensor
    column_index: Tensor
    row_major: Tensor

    def __init__(self, half: PromptHalf, kernels: Kernels = "auto") -> None:
        super().__init__()
        self.inner, self._kernels = half.freeze(), kernels
        self.swin = _Stages(half.swin, kernels)
        self.register_buffer("pixel_index", half.pixel_index.int(), persistent=False)
        self.register_buffer("column_index", half.column_index.int(), persistent=False)
        self.register_buffer("row_major", half.swin.row_major.int(), persistent=False)

    def forward(self, noise: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """As `PromptHalf.forward`."""
        half, kernels = self.inner, self._kernels
        affine, norm = half.text_affine, half.swin.patch_norm
        scale_shift = text_affine(prompt_embeds, affine.weight, affine.bias, backend=kernels)
        x_BNC = embed_patches(
            noise, scale_shift, self.pixel_index, *half.folded_embedding(), _parameters(norm),
            dtype=half.swin.dtype, group_eps=GROUP_NORM_EPS, eps=norm.eps, backend=kernels,
        )  # fmt: skip
        norm, convolution = half.swin.norm, half.from_features
        residual = residual_map(
            self.swin(x_BNC), self.row_major, _parameters(norm), self.column_index,
            convolution.weight.flatten(1), cast(Tensor, convolution.bias), eps=norm.eps, backend=kernels,
        )  # fmt: skip
        return scale_shift, residual


def fused_form(half: PromptHalf, device: torch.device, kernels: Kernels = "auto") -> FusedPromptHalf | None:
    """The form by kernels, on the device that holds the network, where `choose_form` says so."""
    if choose_form(half.config.swin, device, kernels).backend != "triton":
        return None
    return FusedPromptHalf(half, kernels).to(device)


class _Stages(nn.Module):
    """Blocks and patch mergings under the names that they have in a `SwinTransformer`."""

    def __init__(self, swin: SwinTransformer, kernels: Kernels) -> None:
        super().__init__()
        self.merges = nn.ModuleList(_Merging(cast(PatchMerging, merge), kernels) for merge in swin.merges)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(cast(SwinBlock, block), kernels) for block in cast(nn.Sequential, blocks)))
            for blocks in swin.stages
        )

    def forward(self, x_BNC: Tensor) -> Tensor:
        for stage, blocks in enumerate(self.stages):
            x_BNC = blocks(self.merges[stage - 1](x_BNC) if stage else x_BNC)
        return x_BNC


class _Block(nn.Module):
    """A `SwinBlock` in four launches."""

    index: Tensor

    def __init__(self, block: SwinBlock, kernels: Kernels) -> None:
        super().__init__()
        self.block, self._kernels = block, kernels
        self._in_place = block.reorder is None
        index = torch.arange(len(block.order), device="cpu") if block.reorder is None else block.reorder
        self.register_buffer("index", index.int(), persistent=False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        block, kernels = self.block, self._kernels
        qkv, proj, mlp = block.attn.qkv, block.attn.proj, block.mlp
        attended = window_attention(
            x_BNC, self.index, *_parameters(block.norm1), qkv.weight, qkv.bias, block.attn.score_bias(),
            eps=block.norm1.eps, backend=kernels,
        )  # fmt: skip
        index = None if self._in_place else self.index
        x_BNC = fused_linear(
            attended, proj.weight, proj.bias, residual=x_BNC, residual_index=index, backend=kernels
        )
        hidden = fused_linear(
            x_BNC, mlp.fc1.weight, mlp.fc1.bias, norm=_parameters(block.norm2), gelu=True,
            eps=block.norm2.eps, backend=kernels,
        )  # fmt: skip
        return fused_linear(hidden, mlp.fc2.weight, mlp.fc2.bias, residual=x_BNC, backend=kernels)


class _Merging(nn.Module):
    """A `PatchMerging` in one launch."""

    index: Tensor

    def __init__(self, merging: PatchMerging, kernels: Kernels) -> None:
        super().__init__()
        self.merging, self._kernels = merging, kernels
        self.register_buffer("index", merging.index.int(), persistent=False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        norm, weight = self.merging.norm, self.merging.reduction.weight
        return fused_linear(
            x_BNC, weight, norm=_parameters(norm), index=self.index, eps=norm.eps, backend=self._kernels
        )


def _parameters(norm: LayerNorm) -> tuple[Tensor, Tensor]:
    return norm.weight, norm.bias

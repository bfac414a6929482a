"""Swin Transformer features (Liu et al., ICCV 2021, arXiv 2103.14030), inference and training.

Only attention cares where a token stands; norms, products and residual sums work row by row. So the
tokens are kept in *window order* (the tokens of a window follow one another), and every spatial step
of the paper - cyclic shift, window partition and reverse, patch merging - is one gather of rows with
constant indices.

The index tensors are made on the CPU by name: `NPNet.from_state` builds the parameters on the meta
device, and the constants must be real all the same.

Shape suffixes: B batch, N tokens of a stage, C channels, W windows, L tokens of a window, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npnet_runtime.networks.npnet_config import SwinConfig

# Score added between tokens that the cyclic shift brought together (paper, Fig. 4).
MASKED_SCORE = -100.0


def window_order(side: int, window: int, shift: int) -> Tensor:
    """Row-major index of each token of a `side` x `side` map, listed window by window.

    Args:
        side: tokens along a side of the map.
        window: tokens along a side of a window; divides `side`.
        shift: the map is rolled up and left by this many tokens before it is cut into windows.

    Returns:
        (side * side,) int64.
    """
    tokens = torch.arange(side * side, device="cpu").view(side, side).roll((-shift, -shift), (0, 1))
    blocks = tokens.view(side // window, window, side // window, window)
    return blocks.permute(0, 2, 1, 3).flatten()


def inverse(order: Tensor) -> Tensor:
    """The permutation that undoes `order`."""
    return torch.argsort(order)


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """Pairs of tokens, (W, 1, L, L) bool, that share a window only because of the shift."""
    band = torch.zeros(side, dtype=torch.long, device="cpu")
    band[side - window : side - shift], band[side - shift :] = 1, 2
    region = (3 * band[:, None] + band[None, :]).roll((shift, shift), (0, 1)).flatten()
    region_WL = region[window_order(side, window, shift)].view(-1, window * window)
    return (region_WL[:, :, None] != region_WL[:, None, :])[:, None]


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window, (L * L,) int64."""
    tokens = torch.arange(window * window, device="cpu")
    rows, columns = tokens // window, tokens % window
    row_offset = rows[:, None] - rows[None, :] + window - 1
    column_offset = columns[:, None] - columns[None, :] + window - 1
    return (row_offset * (2 * window - 1) + column_offset).flatten()


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32 whatever the dtype of its input, which it returns."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        if self.training and x.is_cpu:  # the CPU kernel widens by itself, which spares two copies each way
            return super().forward(x)
        return super().forward(x.float()).to(x.dtype)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window, with a relative position bias (section 3.2)."""

    relative_position_index: Tensor
    mask: Tensor | None
    frozen_bias: Tensor | None

    def __init__(self, dim: int, num_heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_tokens = window * window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.register_buffer("mask", shift_mask(side, window, shift) if shift else None, persistent=False)
        self.register_buffer("frozen_bias", None, persistent=False)

    def freeze(self) -> None:
        """Compute what depends on weights only, once and for all; see `PromptHalf.freeze`."""
        self.frozen_bias = self.score_bias().contiguous()

    def score_bias(self) -> Tensor:
        """What is added to the scores: (1 or W, H, L, L) float32."""
        if self.frozen_bias is not None:
            return self.frozen_bias
        bias = self.relative_position_bias_table.index_select(0, self.relative_position_index)
        bias_HLL = bias.T.unflatten(-1, (self.window_tokens, self.window_tokens))
        return bias_HLL[None] if self.mask is None else bias_HLL + self.mask.float() * MASKED_SCORE

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Attend within each run of L rows of (B, N, C)."""
        batch, tokens, dim = x_BNC.shape
        qkv = self.qkv(x_BNC).view(batch, -1, self.window_tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, W, H, L, C / H)
        scores = q @ k.mT * (dim // self.num_heads) ** -0.5
        weights = (scores + self.score_bias()).softmax(-1).to(v.dtype)  # the bias is float32: so is the sum
        return self.proj((weights @ v).transpose(2, 3).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (eq. 3), in this block's own window order."""

    reorder: Tensor | None

    def __init__(self, config: SwinConfig, stage: int, shift: int, order_in: Tensor) -> None:
        super().__init__()
        dim, side = config.dim(stage), config.resolution(stage)
        window = min(config.window_size, side)
        self.order = window_order(side, window, shift)
        same = torch.equal(order_in, self.order)
        self.register_buffer("reorder", None if same else inverse(order_in)[self.order], persistent=False)
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(dim, config.num_heads[stage], side, window, shift)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, config.mlp_ratio * dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """(B, N, C) in the previous block's order -> (B, N, C) in this block's."""
        if self.reorder is not None:
            x_BNC = x_BNC.index_select(1, self.reorder)
        x_BNC = x_BNC + self.attn(self.norm1(x_BNC))
        return x_BNC + self.mlp(self.norm2(x_BNC))


class PatchMerging(nn.Module):
    """Each 2x2 neighbourhood becomes one token of twice the channels (section 3.1)."""

    index: Tensor

    def __init__(self, dim: int, side: int, order_in: Tensor, order_out: Tensor) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        rows, columns = order_out // (side // 2), order_out % (side // 2)
        neighbours = (2 * side * rows + 2 * columns)[:, None] + torch.tensor(
            [0, side, 1, side + 1], device="cpu"
        )
        self.register_buffer("index", inverse(order_in)[neighbours].flatten(), persistent=False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """(B, N, C) -> (B, N / 4, 2 C)."""
        merged = x_BNC.index_select(1, self.index).unflatten(1, (-1, 4)).flatten(2)
        return self.reduction(self.norm(merged))


class SwinTransformer(nn.Module):
    """The stages and the final norm: embedded patches in, row-major features out.

    `token_order` lists the row-major index of each patch in the order that `forward` expects, so that
    the caller's patch embedding can gather its pixels in that order at no cost.
    """

    token_order: Tensor
    row_major: Tensor

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.patch_norm = LayerNorm(config.embed_dim)
        self.merges = nn.ModuleList()  # merges[i] stands before stages[i + 1]
        self.stages = nn.ModuleList()
        order = window_order(config.resolution(0), min(config.window_size, config.resolution(0)), 0)
        self.register_buffer("token_order", order, persistent=False)
        for stage, depth in enumerate(config.depths):
            side = config.resolution(stage)
            window = min(config.window_size, side)
            first = window_order(side, window, 0)
            if stage > 0:
                self.merges.append(PatchMerging(config.dim(stage - 1), 2 * side, order, first))
            order, blocks = first, []
            for index in range(depth):
                # Every second block shifts by half a window; a single window has nothing to shift.
                shift = window // 2 if index % 2 and side > window else 0
                blocks.append(SwinBlock(config, stage, shift, order))
                order = blocks[-1].order
            self.stages.append(nn.Sequential(*blocks))
        self.norm = LayerNorm(config.num_features)
        self.register_buffer("row_major", inverse(order), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the matrix products, and so of the rows between the blocks."""
        return next(module.weight.dtype for module in self.modules() if isinstance(module, nn.Linear))

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Features of embedded patches.

        Args:
            x_BNC: (B, N, embed_dim) patches in `token_order`, before the patch norm.

        Returns:
            (B, n * n, num_features) features after the last norm, row-major, in the input's dtype.
        """
        x_BNC = self.patch_norm(x_BNC)
        for index, blocks in enumerate(self.stages):
            x_BNC = blocks(self.merges[index - 1](x_BNC) if index else x_BNC)
        return self.norm(x_BNC.index_select(1, self.row_major))

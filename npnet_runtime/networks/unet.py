"""Blocks of the networks that attend to the prompt: a residual UNet, and attention at its lowest level.

Products are in the precision of their weights; norms, softmax and the sums of residual blocks in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npnet_runtime.networks.norms import GroupNorm

GROUPS = 8
MASKED = -3e4
"""Added to the score of a token that is not there: its weight is zero in every precision."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions behind group norms and SiLU, added to the input."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = GroupNorm(GROUPS, width_in), GroupNorm(GROUPS, width)
        self.conv1, self.conv2 = (
            nn.Conv2d(width_in, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.skip = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in, h, w) to (B, width, h, w), float32."""
        dtype = self.conv1.weight.dtype
        hidden = self.conv1(F.silu(self.norm1(x)).to(dtype)).float()
        hidden = self.conv2(F.silu(self.norm2(hidden)).to(dtype)).float()
        skipped = x if isinstance(self.skip, nn.Identity) else self.skip(x.to(dtype)).float()
        return skipped + hidden


class Attention(nn.Module):
    """Multi-head attention of positions to a context (Vaswani et al., arXiv 1706.03762, section 3.2.2)."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(context_dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """(B, N, D) float32; a context (B, T, context_dim) or the positions themselves; and what is added
        to the scores of the context, (B, 1, 1, T)."""
        dtype = self.q.weight.dtype
        hidden = self.norm(x).to(dtype)
        context = hidden if context is None else context.to(dtype)
        q = self.q(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT * q.shape[-1] ** -0.5).float()
        scores = scores if bias is None else scores + bias
        attended = (scores.softmax(-1).to(dtype) @ v).transpose(1, 2).flatten(2)
        return x + self.proj(attended).float()


class PromptBlock(nn.Module):
    """Residual block, attention to the other positions, attention to the prompt, MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.residual = ResidualBlock(dim, dim)
        self.to_positions, self.to_prompt = Attention(dim, dim, heads), Attention(dim, dim, heads)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, D, h, w), (B, T, D) and the bias of their scores to (B, D, h, w), float32."""
        x = self.residual(x)
        positions = x.flatten(2).transpose(1, 2)
        positions = self.to_prompt(self.to_positions(positions), tokens, bias)
        dtype = self.to_prompt.q.weight.dtype
        positions = positions + self.mlp(self.norm(positions).to(dtype)).float()
        return positions.transpose(1, 2).unflatten(2, (x.shape[2], x.shape[3]))


def levels(
    widths: Sequence[int], blocks: int
) -> tuple[nn.ModuleList, nn.ModuleList, nn.ModuleList, nn.ModuleList]:
    """What stands between the levels of a UNet, from the full resolution down, for each but the lowest.

    Args:
        widths: of the levels.
        blocks: residual blocks of each, on the way down and on the way up.

    Returns:
        Lists of residual blocks before a level is left, convolutions of stride two that leave it, lists of
        residual blocks after it is entered again, beside what was left, and convolutions that enter it.
    """
    down_blocks, downs, up_blocks, ups = (nn.ModuleList() for _ in range(4))
    for width, below in itertools.pairwise(widths):
        down_blocks.append(nn.ModuleList(ResidualBlock(width, width) for _ in range(blocks)))
        downs.append(nn.Conv2d(width, below, 3, stride=2, padding=1))
        first = [ResidualBlock(2 * width, width)]
        up_blocks.append(nn.ModuleList(first + [ResidualBlock(width, width) for _ in range(blocks - 1)]))
        ups.append(nn.Conv2d(below, width, 3, padding=1))
    return down_blocks, downs, up_blocks, ups


def products_to_precision(network: nn.Module, skip: Container[nn.Module], dtype: torch.dtype) -> None:
    """Convert matrix products and convolutions to another precision, in place, but for those to skip."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module not in skip:
            module.to(dtype)

"""A second network for golden noise: a small residual UNet that attends to the prompt's tokens.

NPNet sees the prompt through 2C numbers, one scale and one shift for each latent channel; this network reads
every token. There is no singular value decomposition, and at its first weights it is the identity:

    golden = noise + out(UNet(noise, tokens))        with `out` zero at first

Position is learned where the network attends; that, the absence of a timestep, and self-attention at the
lowest level only are what sets it apart from the UNet of latent diffusion (arXiv 2112.10752, section 3.3).

Shape suffixes: B batch, C latent channels, H x W latent size, T tokens, D width of the lowest level.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npnet_kernels import SVD
from npnet_runtime.errors import ConfigError
from npnet_runtime.networks.nearest import nearest_index
from npnet_runtime.networks.norms import GroupNorm
from npnet_runtime.networks.npnet_config import fields_from_dict, require_positive_ints
from npnet_runtime.networks.unet import GROUPS, PromptBlock, levels, products_to_precision

LOWEST_SIDE, LOWEST_WIDTHS, LEAST_WIDTH = 16, (48, 96), 16
FLOAT32_PARTS = ("norms", "softmax", "sums of residual blocks", "first and last convolution")


@dataclass(frozen=True)
class PromptAttentionConfig:
    """Shapes of the noise, the text and the network.

    Args:
        latent_channels: channels C of the latent noise.
        latent_height: rows H of the latent noise.
        latent_width: columns W of the latent noise.
        text_tokens: tokens of the prompt embeddings.
        text_dim: width of the prompt embeddings.
        channels: of each level, from the full resolution down; each level halves the sides, rounding up.
        blocks: residual blocks of each level, on the way down and on the way up.
        heads: attention heads at the lowest level.

    Raises:
        ConfigError: a field is not positive, or two of them contradict each other.
    """

    kind: ClassVar[str] = "prompt-attention"
    latent_channels: int
    latent_height: int
    latent_width: int
    text_tokens: int
    text_dim: int
    channels: tuple[int, ...] = LOWEST_WIDTHS
    blocks: int = 1
    heads: int = 4

    def __post_init__(self) -> None:
        require_positive_ints(self)
        if not self.channels or any(width % GROUPS for width in self.channels):
            raise ConfigError(
                f"PromptAttentionConfig.channels: expected multiples of {GROUPS}, one for each level, "
                f"given {self.channels}"
            )
        if self.channels[-1] % self.heads:
            raise ConfigError(
                f"PromptAttentionConfig.heads: expected a divisor of {self.channels[-1]}, the width of the "
                f"lowest level, given {self.heads}"
            )
        if min(self.latent_height, self.latent_width) >> (len(self.channels) - 1) < 1:
            raise ConfigError(
                f"PromptAttentionConfig.channels: {len(self.channels)} levels are too many for noise of "
                f"{self.latent_height}x{self.latent_width}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the noise."""
        return self.latent_channels, self.latent_height, self.latent_width

    @property
    def text_shape(self) -> tuple[int, int]:
        """(tokens, width) of the prompt embeddings."""
        return self.text_tokens, self.text_dim

    @property
    def lowest_shape(self) -> tuple[int, int]:
        """Rows and columns of the lowest level."""
        height, width = self.latent_height, self.latent_width
        for _ in self.channels[1:]:
            height, width = (height + 1) // 2, (width + 1) // 2
        return height, width

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back, safe for JSON."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: a field is missing, unknown or out of range.
        """
        return cls(**fields_from_dict(cls, values))


def default_channels(height: int, width: int) -> tuple[int, ...]:
    """Widths of the levels for noise of a size: (48, 96) at 16x16, four levels from 16 to 128 at 128x128.

    Attention needs a lowest level of few positions, and the levels above it must be narrow to be cheap.
    """
    levels = 2
    while min(height, width) >> (levels - 1) > LOWEST_SIDE:
        levels += 1
    first = max(LEAST_WIDTH, LOWEST_WIDTHS[0] >> (levels - 2))
    return tuple(first << level for level in range(levels))


class PromptAttentionNet(nn.Module):
    """The whole network. Parameters are float32 until `to_precision`.

    Args:
        config: shapes of noise, text and network.
    """

    def __init__(self, config: PromptAttentionConfig) -> None:
        super().__init__()
        self.config = config
        widths, lowest = config.channels, config.channels[-1]
        self.read = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.down_blocks, self.downs, self.up_blocks, self.ups = levels(widths, config.blocks)
        # From the level below, which a stride of two left half as high and wide, rounded up.
        sizes = [(config.latent_height, config.latent_width)]
        for level in range(len(widths) - 1):
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
            for name, large, small in zip(("rows", "columns"), *sizes[-2:], strict=True):
                self.register_buffer(f"{name}_{level}", nearest_index(small, large), persistent=False)
        self.text_norm = nn.LayerNorm(config.text_dim)
        self.text = nn.Linear(config.text_dim, lowest)
        self.position = nn.Parameter(torch.randn(lowest, *config.lowest_shape) * 0.1)
        self.prompt_blocks = nn.ModuleList(
            PromptBlock(lowest, config.heads) for _ in range(2 * config.blocks)
        )
        self.out_norm = GroupNorm(GROUPS, widths[0])
        self.out = nn.Conv2d(widths[0], config.latent_channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, noise: Tensor, prompt_embeds: Tensor, factors: SVD | None = None) -> Tensor:
        """Golden noise.

        Args:
            noise: (B, C, H, W) of unit variance.
            prompt_embeds: (B, tokens, width).
            factors: not read; here so that both kinds of network are called alike.

        Returns:
            (B, C, H, W) in the noise's dtype.
        """
        dtype = self.text.weight.dtype
        tokens = self.text(self.text_norm(prompt_embeds.float()).to(dtype)).float()
        x = self.read(noise.float())
        skips: list[Tensor] = []
        for blocks, down in zip(self.down_blocks, self.downs, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            skips.append(x)
            x = down(x.to(dtype)).float()
        x = x + self.position
        for block in self.prompt_blocks:
            x = block(x, tokens)
        for blocks, up in zip(reversed(self.up_blocks), reversed(self.ups), strict=True):
            skip, level = skips.pop(), len(skips)
            # A resize to the size of a tensor would be computed on the CPU by ONNX Runtime.
            rows, columns = self.get_buffer(f"rows_{level}"), self.get_buffer(f"columns_{level}")
            x = x.index_select(2, rows).index_select(3, columns)
            x = torch.cat([up(x.to(dtype)).float(), skip], dim=1)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        change = self.out(F.silu(self.out_norm(x)))
        return (noise.float() + change).to(noise.dtype)

    def parts(self) -> dict[str, nn.Module]:
        """The module behind each of the engine's graphs; see `npnet_runtime.networks.graphs`."""
        return {"network": self}

    def to_precision(self, dtype: torch.dtype) -> Self:
        """Convert matrix products and inner convolutions to float16 or bfloat16, in place.

        What is computed in float32 all the same is in `FLOAT32_PARTS`.
        """
        products_to_precision(self, (self.read, self.out), dtype)
        return self

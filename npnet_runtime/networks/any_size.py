"""Golden noise of any size, for any prompt: `prompt_attention` without a table of positions, with a mask.

One set of weights serves every height and width, every number of tokens, and latents of any autoencoder:

    golden = noise + out(UNet(noise, positions, tokens))        with `out` zero at first

* Positions are features of coordinates, -1 to 1 along each side, and of the aspect ratio and the area.
* The sides become multiples of what the levels divide by: noise is mirrored at its lower and right edge,
  which keeps it white, and the golden noise is cut again.
* Tokens that a mask leaves out weigh nothing. One more token is always there: learned, and with the pooled
  embedding where a model has one; so that a prompt without tokens is a prompt too.
* A second text encoder's tokens, where a model has one, stand behind the first's.

Shape suffixes as in `prompt_attention`; h x w: the lowest level, T, U: tokens of the first and second text,
P: width of the pooled embedding, F: features of a position.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npnet_kernels import SVD
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.norms import GroupNorm
from npnet_runtime.networks.unet import GROUPS, MASKED, PromptBlock, levels, products_to_precision

FREQUENCIES = 4
FEATURES = 4 + 4 * FREQUENCIES


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept, and what is made in that mode can never be trained with
def positions(height: int, width: int, stride: int, device: torch.device | str = "cpu") -> Tensor:
    """Features of the places of the lowest level, (F, h, w) float32, for noise of H x W; kept on its device.

    Coordinates are -1 at the upper and left edge and 1 at the lower and right edge of the noise itself,
    whatever it was padded to, with sines and cosines of 1 to 8 half turns; then the logarithms of the aspect
    ratio and of the area.
    """
    axes = []
    for side in (height, width):
        places = torch.arange(-(-side // stride), dtype=torch.float64, device="cpu")
        axes.append((places + 0.5) * stride / side * 2 - 1)
    y, x = torch.meshgrid(*axes, indexing="ij")
    features = [y, x]
    for power in range(FREQUENCIES):
        for axis in (y, x):
            features += [(axis * math.pi / 2 * 2**power).sin(), (axis * math.pi / 2 * 2**power).cos()]
    features += [torch.full_like(y, math.log(width / height)), torch.full_like(y, math.log2(height * width))]
    features[-1] = features[-1] / 10 - 1
    return torch.stack(features).float().to(device)


def pad(noise: Tensor, stride: int) -> Tensor:
    """(B, C, H, W) mirrored at its lower and right edge up to multiples of `stride`."""
    height, width = noise.shape[2:]
    below, right = -height % stride, -width % stride
    return F.pad(noise, (0, right, 0, below), mode="reflect") if below or right else noise


class AnySizeCore(nn.Module):
    """The network on sides that its levels divide: the graph of an engine. See `AnySizeNet`."""

    def __init__(self, config: AnySizeConfig) -> None:
        super().__init__()
        self.config = config
        widths, lowest = config.channels, config.channels[-1]
        self.read = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.down_blocks, self.downs, self.up_blocks, self.ups = levels(widths, config.blocks)
        self.position = nn.Conv2d(FEATURES, lowest, 1)
        self.always = nn.Parameter(torch.randn(lowest))
        self.text_norm, self.text = nn.LayerNorm(config.text_dim), nn.Linear(config.text_dim, lowest)
        if config.pooled_dim:
            self.pooled_norm = nn.LayerNorm(config.pooled_dim)
            self.pooled = nn.Linear(config.pooled_dim, lowest)
        if config.second_dim:
            self.second_norm = nn.LayerNorm(config.second_dim)
            self.second = nn.Linear(config.second_dim, lowest)
        self.prompt_blocks = nn.ModuleList(
            PromptBlock(lowest, config.heads) for _ in range(2 * config.blocks)
        )
        self.out_norm = GroupNorm(GROUPS, widths[0])
        self.out = nn.Conv2d(widths[0], config.latent_channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(
        self,
        noise: Tensor,
        prompt_embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        pooled: Tensor | None = None,
        second_embeds: Tensor | None = None,
        second_mask: Tensor | None = None,
    ) -> Tensor:
        """Golden noise.

        Args:
            noise: (B, C, H, W) of unit variance, the sides multiples of the config's `stride`.
            prompt_embeds: (B, T, width).
            mask: (B, T), 1 for a token and 0 for none, of a floating dtype.
            positions: (B, F, h, w), as the function of that name gives them.
            pooled: (B, P), where the network reads it.
            second_embeds: (B, U, width), where the network reads them.
            second_mask: (B, U).

        Returns:
            (B, C, H, W) in the noise's dtype.
        """
        dtype = self.text.weight.dtype
        tokens = self.text(self.text_norm(prompt_embeds.float()).to(dtype)).float()
        always = self.always.expand(tokens.shape[0], 1, -1)
        if pooled is not None:
            always = always + self.pooled(self.pooled_norm(pooled.float()).to(dtype)).float()[:, None]
        texts, masks = [always, tokens], [torch.ones_like(mask[:, :1]), mask]
        if second_embeds is not None and second_mask is not None:
            texts.append(self.second(self.second_norm(second_embeds.float()).to(dtype)).float())
            masks.append(second_mask)
        context = torch.cat(texts, dim=1)
        bias = ((1 - torch.cat(masks, dim=1).float()) * MASKED)[:, None, None]
        x = self.read(noise.float())
        skips: list[Tensor] = []
        for blocks, down in zip(self.down_blocks, self.downs, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            skips.append(x)
            x = down(x.to(dtype)).float()
        x = x + self.position(positions.to(dtype)).float()
        for block in self.prompt_blocks:
            x = block(x, context, bias)
        for blocks, up in zip(reversed(self.up_blocks), reversed(self.ups), strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = torch.cat([up(x.to(dtype)).float(), skips.pop()], dim=1)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        return (noise.float() + self.out(F.silu(self.out_norm(x)))).to(noise.dtype)


class AnySizeNet(nn.Module):
    """The whole network, for noise of any size. Parameters are float32 until `to_precision`.

    Args:
        config: shapes of noise, text and network.
    """

    def __init__(self, config: AnySizeConfig) -> None:
        super().__init__()
        self.config = config
        self.core = AnySizeCore(config)

    def forward(
        self,
        noise: Tensor,
        prompt_embeds: Tensor,
        factors: SVD | None = None,
        *,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
        second_embeds: Tensor | None = None,
        second_mask: Tensor | None = None,
    ) -> Tensor:
        """Golden noise.

        Args:
            noise: (B, C, H, W) of unit variance.
            prompt_embeds: (B, T, width).
            factors: not read; here so that all kinds of network are called alike.
            mask: (B, T), 1 for a token and 0 for none; all are tokens if left out.
            pooled: (B, P); only of a network that reads it.
            second_embeds: (B, U, width); only of a network that reads them.
            second_mask: (B, U); all are tokens if left out.

        Returns:
            (B, C, H, W) in the noise's dtype.
        """
        height, width = noise.shape[2:]
        places = positions(height, width, self.config.stride, noise.device).expand(len(noise), -1, -1, -1)
        extra = [] if pooled is None else [pooled]
        if second_embeds is not None:
            seconds = second_embeds.new_ones(second_embeds.shape[:2]) if second_mask is None else second_mask
            extra += [second_embeds, seconds]
        masked = prompt_embeds.new_ones(prompt_embeds.shape[:2]) if mask is None else mask
        named = dict(zip(self.config.optional_inputs, extra, strict=True))
        golden: Tensor = self.core(pad(noise, self.config.stride), prompt_embeds, masked, places, **named)
        return golden[:, :, :height, :width]

    def parts(self) -> dict[str, nn.Module]:
        """The module behind each of the engine's graphs; see `npnet_runtime.networks.graphs`."""
        return {"network": self.core}

    def to_precision(self, dtype: torch.dtype) -> Self:
        """Convert matrix products and inner convolutions to float16 or bfloat16, in place.

        What is computed in float32 all the same is in `prompt_attention.FLOAT32_PARTS`.
        """
        products_to_precision(self, (self.core.read, self.core.out), dtype)
        return self

"""The published computation, in eager float32 PyTorch: what every ratio is measured against.

Written from the paper and the specification of its public code, with that code's way of computing: the
SVD inside, the full reconstruction `U diag(s + f) Vh`, images in NHWC with roll, partition and reverse,
`scaled_dot_product_attention` per window, resized maps at full size. Its Swin was checked beside timm 1.0.31:
the same output to 2e-6, in 0.96 of the time on a CPU. Parameters carry the published names.
Evaluated in eval mode; the unused head and BatchNorm cost the original no time and are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npnet_kernels import SVD
from npnet_runtime.networks.npnet_config import NPNetConfig, SwinConfig
from npnet_runtime.weights.published import published_name


class Attention(nn.Module):
    """Self-attention over the singular triplets."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))


class SpectralBranch(nn.Module):
    """SVD, correction of the singular values, full reconstruction."""

    def __init__(self, config: NPNetConfig) -> None:
        super().__init__()
        self.grid = config.grid
        (rows, columns), k, hidden = config.matrix_shape, config.num_singular_values, config.spectral_hidden
        self.mlp1 = nn.Sequential(nn.Linear(rows, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, k))
        self.mlp2 = nn.Sequential(nn.Linear(columns, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, k))
        self.mlp3 = nn.Sequential(nn.Linear(k, k))
        self.attention = Attention(k, config.spectral_heads)
        wide = config.spectral_mlp_hidden
        self.mlp4 = nn.Sequential(nn.Linear(k, wide), nn.ReLU(inplace=True), nn.Linear(wide, k))

    def svd(self, noise: Tensor) -> SVD:
        """Factors of the noise's matrix."""
        batch, _, height, width = noise.shape
        g = self.grid
        matrix = (
            noise.reshape(batch, g, g, height, width).transpose(2, 3).reshape(batch, g * height, g * width)
        )
        return SVD(*torch.linalg.svd(matrix, full_matrices=False))

    def forward(self, noise: Tensor, factors: SVD | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        u, s, vh = factors or self.svd(noise)
        tokens = self.mlp1(u.permute(0, 2, 1)) + self.mlp2(vh) + self.mlp3(s).unsqueeze(1)
        corrected = self.mlp4(self.attention(tokens).mean(1)) + s
        batch, channels, height, width = noise.shape
        matrix = (u @ torch.diag_embed(corrected) @ vh).reshape(batch, self.grid, height, self.grid, width)
        return matrix.transpose(2, 3).reshape(batch, channels, height, width)


class WindowAttention(nn.Module):
    """Attention inside windows that are already cut out."""

    index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        y, x = y.flatten(), x.flatten()
        index = (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(windows, tokens, C) -> (windows, tokens, C)."""
        windows, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(windows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            shape = (windows // len(mask), len(mask), self.heads, tokens, tokens)
            bias = bias + mask[None, :, None].expand(shape).reshape(-1, self.heads, tokens, tokens)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(windows, tokens, dim))


class Block(nn.Module):
    """A Swin block on NHWC maps."""

    def __init__(self, config: SwinConfig, stage: int, shifted: bool) -> None:
        super().__init__()
        dim, side = config.dim(stage), config.resolution(stage)
        self.window = min(config.window_size, side)
        self.shift = self.window // 2 if shifted and side > self.window else 0
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, config.num_heads[stage], self.window)
        hidden = config.mlp_ratio * dim
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})
        self.register_buffer("attn_mask", self._mask(side) if self.shift else None, persistent=False)

    def _mask(self, side: int) -> Tensor:
        image, count = torch.zeros(1, side, side, 1), 0
        cuts = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for rows in cuts:
            for columns in cuts:
                image[:, rows, columns] = count
                count += 1
        regions = self._partition(image).squeeze(-1)
        return (regions[:, None] != regions[:, :, None]).float() * -100.0

    def _partition(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        w = self.window
        x = x.view(batch, height // w, w, width // w, w, dim).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, w * w, dim)

    def _attend(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        w = self.window
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = self.attn(self._partition(x), self.attn_mask)
        x = x.view(batch, height // w, width // w, w, w, dim).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, height, width, dim)
        return torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2)) if self.shift else x

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self._attend(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Downsample(nn.Module):
    """Patch merging."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H / 2, W / 2, 2 C)."""
        batch, height, width, dim = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """A merge, except in the first stage, and blocks."""

    def __init__(self, config: SwinConfig, stage: int) -> None:
        super().__init__()
        self.downsample = Downsample(config.dim(stage - 1)) if stage else nn.Identity()
        self.blocks = nn.Sequential(*(Block(config, stage, i % 2 == 1) for i in range(config.depths[stage])))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the next stage's map."""
        return self.blocks(self.downsample(x))


class Swin(nn.Module):
    """Swin features in NHWC after the last norm."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        proj = nn.Conv2d(3, config.embed_dim, config.patch_size, config.patch_size)
        self.patch_embed = nn.ModuleDict({"proj": proj, "norm": nn.LayerNorm(config.embed_dim)})
        self.layers = nn.Sequential(*(Stage(config, stage) for stage in range(len(config.depths))))
        self.norm = nn.LayerNorm(config.num_features)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, n, n, C)."""
        x = self.patch_embed["norm"](self.patch_embed["proj"](image).permute(0, 2, 3, 1))
        return self.norm(self.layers(x))


class ResidualBranch(nn.Module):
    """Resize, 1x1 convolution, Swin, resize of the NHWC map read as NCHW, 1x1 convolution."""

    def __init__(self, config: NPNetConfig) -> None:
        super().__init__()
        self.image_size, self.latent_size = config.swin.image_size, config.latent_shape[1:]
        self.downconv = nn.Conv2d(config.latent_channels, 3, 1)
        self.swin = Swin(config.swin)
        self.upconv = nn.Conv2d(config.swin.feature_size, config.latent_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        features = self.swin(self.downconv(F.interpolate(x, [self.image_size, self.image_size])))
        return self.upconv(F.interpolate(features, list(self.latent_size)))


class PublishedNPNet(nn.Module):
    """The published network.

    Args:
        config: shapes of noise, text and network.
        state: weights by the names of `npnet_runtime.NPNet.state_dict`.
    """

    def __init__(self, config: NPNetConfig, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.unet_svd = SpectralBranch(config)
        self.unet_embedding = ResidualBranch(config)
        linear = nn.Linear(config.text_tokens * config.text_dim, 2 * config.latent_channels)
        self.embeeding = nn.ModuleDict({"linear": linear})
        self.alpha, self.beta = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.load_state_dict({published_name(name): value for name, value in state.items()})
        self.requires_grad_(False).eval()

    def prompt_branches(self, noise: Tensor, prompt_embeds: Tensor) -> Tensor:
        """What the text and the residual branch add to the spectral branch."""
        scale, shift = self.embeeding["linear"](prompt_embeds.flatten(1))[:, :, None, None].chunk(2, dim=1)
        text = F.group_norm(noise, 1, eps=1e-6) * (1 + scale) + shift
        return (2 * torch.sigmoid(self.alpha) - 1) * text + self.beta * self.unet_embedding(noise + text)

    def forward(self, noise: Tensor, prompt_embeds: Tensor, factors: SVD | None = None) -> Tensor:
        """(B, C, H, W), (B, tokens, width) -> golden noise (B, C, H, W).

        `factors` replaces the SVD, so that another implementation can be compared with the same signs.
        """
        return self.unet_svd(noise, factors) + self.prompt_branches(noise, prompt_embeds)

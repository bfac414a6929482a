"""NPNet (Zhou et al., ICCV 2025, arXiv 2411.09502), readable top to bottom.

The network is written as its two independent halves. The *spectral half* reads the noise only: it
corrects the singular values of the noise, and can run before the prompt is known. The *prompt half*
reads noise and prompt: an adaptive group norm and a Swin branch. `NPNet.forward` adds them up:

    golden = fold(M + U diag(f) Vh) + (2 sigmoid(alpha) - 1) T + beta R

Three identities make it cheaper than the published code, and exact:

* `U diag(s + f) Vh = M + U diag(f) Vh`, so only the correction f needs the factors of M;
* the input of the patch embedding is the noise under a per-channel affine map, a nearest resize and
  a 1x1 convolution: one gather of pixels and one product;
* the nearest resize of the Swin features to the latent size repeats n rows and picks W of the
  feature columns: R has only C x n x W distinct numbers.

Shape suffixes: B batch, C latent channels, H x W latent size, N patches, n feature map side.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npnet_kernels import SVD
from npnet_kernels.affine.reference import text_affine_reference
from npnet_kernels.reconstruction.reference import GROUP_NORM_EPS, combine_reference, spectral_reference
from npnet_runtime.networks.nearest import nearest_index
from npnet_runtime.networks.norms import group_norm
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.swin import SwinTransformer, WindowAttention

FLOAT32_PARTS = (
    "group norm",
    "layer norms",
    "softmax",
    "relative position bias",
    "text affine (sum)",
    "patch embedding",
    "last 1x1 convolution",
    "SVD and reconstruction",
)


class SpectralHead(nn.Module):
    """Singular triplets of the noise matrix -> correction f of its singular values.

    Each triplet is a token; they attend to one another, and their mean is read by an MLP.
    """

    def __init__(self, config: NPNetConfig) -> None:
        super().__init__()
        (rows, columns), k = config.matrix_shape, config.num_singular_values
        hidden = config.spectral_hidden
        self.num_heads = config.spectral_heads
        self.u_mlp = nn.Sequential(nn.Linear(rows, hidden), nn.ReLU(), nn.Linear(hidden, k))
        self.v_mlp = nn.Sequential(nn.Linear(columns, hidden), nn.ReLU(), nn.Linear(hidden, k))
        self.s_linear = nn.Linear(k, k)
        self.qkv = nn.Linear(k, 3 * k, bias=False)
        self.proj = nn.Linear(k, k)
        self.f_mlp = nn.Sequential(
            nn.Linear(k, config.spectral_mlp_hidden), nn.ReLU(), nn.Linear(config.spectral_mlp_hidden, k)
        )

    def forward(self, u: Tensor, s: Tensor, vh: Tensor) -> Tensor:
        """Correction of the singular values.

        Args:
            u: (B, rows, k) left singular vectors in columns.
            s: (B, k) singular values, descending.
            vh: (B, k, columns) right singular vectors in rows.

        Returns:
            (B, k) float32.
        """
        dtype = self.qkv.weight.dtype
        u, s, vh = u.to(dtype), s.to(dtype), vh.to(dtype)
        tokens = self.u_mlp(u.mT) + self.v_mlp(vh) + self.s_linear(s)[:, None]
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, tokens, k / heads)
        scores = (q @ k.mT * q.shape[-1] ** -0.5).float()
        attended = (scores.softmax(-1).to(dtype) @ v).transpose(1, 2).flatten(2)
        return self.f_mlp(self.proj(attended).mean(1)).float()


class PromptHalf(nn.Module):
    """Noise and prompt -> what the text affine and the residual branch contribute."""

    pixel_index: Tensor
    column_index: Tensor
    frozen_weight: Tensor | None
    frozen_bias: Tensor | None

    def __init__(self, config: NPNetConfig) -> None:
        super().__init__()
        channels, swin = config.latent_channels, config.swin
        self.config = config
        self.text_affine = nn.Linear(config.text_tokens * config.text_dim, 2 * channels)
        self.to_rgb = nn.Conv2d(channels, 3, 1)
        self.patch_embed = nn.Conv2d(3, swin.embed_dim, swin.patch_size, swin.patch_size)
        self.swin = SwinTransformer(swin)
        self.from_features = nn.Conv2d(swin.feature_size, channels, 1)

        rows = nearest_index(config.latent_height, swin.image_size)
        columns = nearest_index(config.latent_width, swin.image_size)
        pixels = rows[:, None] * config.latent_width + columns[None, :]
        patches = pixels.unfold(0, swin.patch_size, swin.patch_size).unfold(
            1, swin.patch_size, swin.patch_size
        )
        in_order = patches.flatten(2).flatten(0, 1)[self.swin.token_order]
        self.register_buffer("pixel_index", in_order.flatten(), persistent=False)
        column_index = nearest_index(swin.num_features, config.latent_width)
        self.register_buffer("column_index", column_index, persistent=False)
        self.register_buffer("frozen_weight", None, persistent=False)
        self.register_buffer("frozen_bias", None, persistent=False)

    def freeze(self) -> Self:
        """Compute what depends on weights only, in place: score biases and the folded patch embedding.

        For inference on weights that do not change any more; results keep every bit. Compilers do the same
        for the engines they make.
        """
        with torch.no_grad():
            self.frozen_weight, self.frozen_bias = self.folded_embedding()
            for module in self.modules():
                if isinstance(module, WindowAttention):
                    module.freeze()
        return self

    def embed(self, image: Tensor) -> Tensor:
        """Nearest resize, 1x1 convolution and patch embedding of (B, C, H, W), as one product.

        Returns:
            (B, N, embed_dim) in the dtype of the Swin weights, patches in `swin.token_order`.
        """
        weight, bias = self.folded_embedding()
        pixels = image.flatten(2).index_select(2, self.pixel_index)
        patches = pixels.unflatten(2, (-1, self.config.swin.patch_size**2)).transpose(1, 2).flatten(2)
        return F.linear(patches, weight, bias).to(self.swin.dtype)

    def folded_embedding(self) -> tuple[Tensor, Tensor]:
        """1x1 convolution and patch embedding as one product: (embed_dim, C * p * p) and (embed_dim,)."""
        if self.frozen_weight is not None and self.frozen_bias is not None:
            return self.frozen_weight, self.frozen_bias
        rgb = self.to_rgb.weight.flatten(1)  # (3, C)
        weight = torch.einsum("erij,rc->ecij", self.patch_embed.weight, rgb).flatten(1)
        # Products, here and in `residual`: cuDNN's convolutions would round to TF32 on a GPU.
        bias = torch.einsum("erij,r->e", self.patch_embed.weight, self.to_rgb.bias)
        return weight, bias + self.patch_embed.bias  # type: ignore[operator]

    def scale_shift(self, prompt_embeds: Tensor) -> Tensor:
        """(B, tokens, width) -> (B, 2C) float32: the scales of the C channels, then their shifts."""
        return text_affine_reference(prompt_embeds, self.text_affine.weight, self.text_affine.bias)

    def residual(self, noise: Tensor, scale_shift: Tensor) -> Tensor:
        """The residual branch before its rows are repeated over H.

        Args:
            noise: (B, C, H, W).
            scale_shift: (B, 2C).

        Returns:
            (B, C, n, W) float32.
        """
        noise = noise.float()
        scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
        text = group_norm(noise, 1, eps=GROUP_NORM_EPS) * (1 + scale) + shift
        n = self.config.swin.feature_size
        features = self.swin(self.embed(noise + text)).float().unflatten(1, (n, n))
        # The published layout: the rows of the NHWC feature map are read as channels.
        rows = features.index_select(3, self.column_index).flatten(2)
        weight, bias = self.from_features.weight.flatten(1), self.from_features.bias
        return (weight @ rows).unflatten(2, (n, -1)) + bias[:, None, None]  # type: ignore[index]

    def forward(self, noise: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """`scale_shift` (B, 2C) and `residual` (B, C, n, W) of a batch of noise and prompts."""
        scale_shift = self.scale_shift(prompt_embeds)
        return scale_shift, self.residual(noise, scale_shift)


class NPNet(nn.Module):
    """The whole network. Parameters are float32 until `to_precision`.

    Args:
        config: shapes of noise, text and network.
    """

    def __init__(self, config: NPNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or NPNetConfig()
        self.spectral_head = SpectralHead(self.config)
        self.prompt_half = PromptHalf(self.config)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.beta = nn.Parameter(torch.zeros(()))

    def spectral_half(self, noise: Tensor, factors: SVD) -> Tensor:
        """fold(M + U diag(f) Vh), with the singular value correction f of the spectral head.

        Args:
            noise: (B, C, H, W) float32.
            factors: of the noise's matrix, `npnet_kernels.svd(latent_to_matrix(noise))`.

        Returns:
            (B, C, H, W) float32.
        """
        return spectral_reference(noise, factors.u, self.spectral_head(*factors), factors.vh)

    def forward(self, noise: Tensor, prompt_embeds: Tensor, factors: SVD) -> Tensor:
        """Golden noise.

        Args:
            noise: (B, C, H, W) of unit variance.
            prompt_embeds: (B, tokens, width).
            factors: as in `spectral_half`.

        Returns:
            (B, C, H, W) in the noise's dtype.
        """
        spectral = self.spectral_half(noise, factors)
        scale_shift, residual = self.prompt_half(noise, prompt_embeds)
        return combine_reference(spectral, noise, scale_shift, residual, self.text_weight, self.beta)

    @property
    def text_weight(self) -> Tensor:
        """Weight of the text branch, 2 sigmoid(alpha) - 1."""
        return 2 * torch.sigmoid(self.alpha) - 1

    def parts(self) -> dict[str, nn.Module]:
        """The module behind each of the engine's graphs; see `npnet_runtime.networks.graphs`."""
        return {"spectral_head": self.spectral_head, "prompt_half": self.prompt_half}

    def to_precision(self, dtype: torch.dtype) -> Self:
        """Convert the matrix products of both halves to float16 or bfloat16, in place.

        Norms, softmax, relative position bias, patch embedding, the sum over the text and the last
        1x1 convolution are still computed in float32 (see `FLOAT32_PARTS`).
        """
        for module in [*self.spectral_head.modules(), *self.prompt_half.modules()]:
            if isinstance(module, nn.Linear):
                module.to(dtype)
        return self

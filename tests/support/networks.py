"""Networks for the tests: the parity fixture's, and small ones of every shape."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.npnet_config import NPNetConfig, SwinConfig
from npnet_runtime.networks.prompt_attention import PromptAttentionConfig
from npnet_runtime.networks.random_weights import scaled_state
from npnet_runtime.weights.published import published_name

DATA = Path(__file__).parents[1] / "data"

SMALL_SWIN = SwinConfig(
    image_size=28, patch_size=2, window_size=7, embed_dim=8, depths=(2, 2), num_heads=(2, 4), mlp_ratio=2
)
SMALL = NPNetConfig(
    latent_height=16,
    latent_width=16,
    text_tokens=5,
    text_dim=12,
    spectral_hidden=8,
    spectral_mlp_hidden=24,
    swin=SMALL_SWIN,
)
SMALL_ATTENTION = PromptAttentionConfig(4, 16, 16, 5, 12, channels=(8, 16), heads=2)
ANY_SIZE = AnySizeConfig(
    16, 12, 10, 7, 24, 4, 32, 40, pooled_dim=12, second_tokens=3, second_dim=8, channels=(8, 16, 16), heads=2
)
"""It reads all that there is to read."""
# Every way in which a network may differ from the published one.
SHAPES = {
    "small": SMALL,
    "16 channels": NPNetConfig(
        latent_channels=16, latent_height=8, latent_width=8, text_tokens=3, text_dim=10, swin=SMALL_SWIN
    ),
    "landscape": NPNetConfig(latent_height=12, latent_width=20, text_tokens=4, text_dim=6, swin=SMALL_SWIN),
    "portrait": NPNetConfig(latent_height=20, latent_width=12, text_tokens=4, text_dim=6, swin=SMALL_SWIN),
    "one channel": NPNetConfig(
        latent_channels=1, latent_height=24, latent_width=24, text_tokens=2, text_dim=8, swin=SMALL_SWIN
    ),
    "three stages": NPNetConfig(
        latent_height=16,
        latent_width=16,
        text_tokens=2,
        text_dim=8,
        swin=SwinConfig(40, 2, 5, 12, (1, 3, 2), (2, 3, 6), 3),
    ),
    "window larger than the map": NPNetConfig(
        latent_height=16,
        latent_width=16,
        text_tokens=2,
        text_dim=8,
        swin=SwinConfig(16, 4, 7, 8, (2, 1), (1, 2), 2),
    ),
}


def parity_draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The fixture's rule: standard normal values that depend on the name and the shape only."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return generator.standard_normal(shape, dtype=np.float32)


def parity_state(config: NPNetConfig) -> dict[str, Tensor]:
    """The fixture's weights."""
    return scaled_state(config, lambda name, shape: parity_draw(published_name(name), shape))


def noise_and_prompts(
    config: NPNetConfig | PromptAttentionConfig, batch: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Unit-variance noise and prompt embeddings."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, *config.latent_shape, generator=generator)
    return noise, torch.randn(batch, *config.text_shape, generator=generator)

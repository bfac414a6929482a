"""A shapes model with everything in its folder, trained for a handful of steps."""

from pathlib import Path

import pytest

from npnet_runtime.networks.npnet_config import NPNetConfig, SwinConfig
from npnet_runtime.networks.prompt_attention import PromptAttentionConfig
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.weights import checkpoint
from npnet_training.embedded import SHAPES
from support.worlds import build_small

pytest.importorskip("diffusers")

NETWORKS = {
    "prompt-attention": PromptAttentionConfig(4, 16, 16, 16, 64, channels=(8, 16)),
    "npnet": NPNetConfig(
        latent_height=16, latent_width=16, text_tokens=16, text_dim=64, spectral_hidden=8,
        spectral_mlp_hidden=16, swin=SwinConfig(32, 2, 4, 8, (1, 1), (1, 2), 2),
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_small("shapes", tmp_path_factory)
    for name, config in NETWORKS.items():
        checkpoint.write(folder / "golden" / f"{name}.safetensors", random_state(config, 0), config)
    SHAPES.write_manifest(folder)
    return folder

"""Builds of the embedded models that take seconds."""

from pathlib import Path
from typing import Any

import pytest

SMALL: dict[str, dict[str, Any]] = {
    "shapes": {
        "autoencoder_steps": 3, "decoder_steps": 2, "text_steps": 3, "unet_steps": 4, "weak": 2,
        "save_every": 2, "look_every": 2, "scenes": 64, "judged": 1,
    },
    "scenes": {
        "scenes": 36, "autoencoder_steps": 2, "crop_steps": 1, "decoder_steps": 2, "text_steps": 2,
        "steps": 4, "kept": (2,), "save_every": 2, "look_every": 4, "judged": 1,
    },
}  # fmt: skip


def build_small(world: str, factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of the right form that has learned nothing."""
    module = pytest.importorskip(f"npnet_training.{world}.build")
    folder = factory.mktemp(world) / "model"
    module.build(module.BuildSettings(output=folder, **SMALL[world]))
    return folder

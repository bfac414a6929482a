"""A build of the scenes model that takes seconds."""

from typing import Any

SMALL: dict[str, Any] = {
    "scenes": 36, "autoencoder_steps": 2, "crop_steps": 1, "decoder_steps": 2, "text_steps": 2, "steps": 4,
    "kept": (2,), "save_every": 2, "look_every": 4, "judged": 1,
}  # fmt: skip

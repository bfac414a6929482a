"""Features whose distance says how different two images are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from npnet_training.errors import ModelError

if TYPE_CHECKING:
    from PIL import Image

DINO = "facebook/dinov2-small"
SIDE = 64
Features = Callable[[Sequence["Image.Image"]], NDArray[np.float64]]
"""N images -> (N, D)."""


def load_features(name: str, *, device: str = "cpu", offline: bool = False) -> Features:
    """The features of that name.

    `pixels`: images of at most 64x64; their distance is the root mean square of pixels in [0, 1].
    `dino`: DINOv2's class token (arXiv 2304.07193) of unit norm.

    Raises:
        ModelError: DINOv2 cannot be loaded.
    """
    return pixels if name == "pixels" else _dino(device, offline)


def pixels(images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """See `load_features`."""
    small = [
        image.convert("RGB").resize((min(SIDE, image.width), min(SIDE, image.height))) for image in images
    ]
    flat = np.stack([np.asarray(image, np.float64).ravel() / 255 for image in small])
    return flat / np.sqrt(flat.shape[1])


def _dino(device: str, offline: bool) -> Features:
    try:
        from transformers import AutoImageProcessor, AutoModel

        processor: Any = AutoImageProcessor.from_pretrained(DINO, local_files_only=offline)
        model: Any = AutoModel.from_pretrained(DINO, local_files_only=offline, use_safetensors=True)
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(
            f"--diversity dino needs {DINO} ({error}); give --diversity pixels where there is no network"
        ) from error
    model.to(device).eval()

    @torch.no_grad()
    def features(images: Sequence[Image.Image]) -> NDArray[np.float64]:
        inputs = processor(images=[image.convert("RGB") for image in images], return_tensors="pt").to(device)
        token = model(**inputs).last_hidden_state[:, 0].double().cpu().numpy()
        return np.asarray(token / np.linalg.norm(token, axis=1, keepdims=True))

    return features


def mean_distance(features: NDArray[np.float64]) -> float:
    """Mean Euclidean distance between any two of (N, D), N at least 2."""
    rows, columns = np.triu_indices(len(features), 1)
    return float(np.linalg.norm(features[rows] - features[columns], axis=1).mean())

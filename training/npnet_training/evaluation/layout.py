"""Where the things in an image are and what colours it has, without knowing what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

NAMES = ("x", "y", "red", "green", "blue")
CELLS = 16


def layout_of(images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """Centre of what stands out, in sides of the image, and mean colour in [0, 1]: (N, 5), as `NAMES`.

    What stands out is how far an area's colour is from the image's median colour; areas are 16 x 16.
    """
    rows = []
    for image in images:
        pixels = np.asarray(image.convert("RGB").resize((CELLS, CELLS)), np.float64) / 255
        weight = np.linalg.norm(pixels - np.median(pixels.reshape(-1, 3), axis=0), axis=2) ** 2
        places = (np.arange(CELLS) + 0.5) / CELLS
        total = weight.sum()
        x, y = (float((weight.sum(axis) * places).sum() / total) if total > 0 else 0.5 for axis in (0, 1))
        rows.append([x, y, *pixels.mean((0, 1))])
    return np.array(rows)

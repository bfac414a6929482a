"""What training needs of a dataset of noise pairs; `npnet_training.pairs.PairDataset` is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor


class SourceInfo(Protocol):
    """What a dataset says of itself."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the noise."""
        ...

    @property
    def text_shape(self) -> tuple[int, int]:
        """(tokens, width) of the prompt embeddings."""
        ...

    @property
    def texts(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what its model encodes of a prompt, by field of `npnet_runtime.inputs.texts.Prompt`."""
        ...

    @property
    def model(self) -> str:
        """Name of the text-to-image model, for `npnet_training.models.load_pipeline`."""
        ...

    @property
    def revision(self) -> str | None:
        """Its commit or digest, as `ModelInfo.revision`."""
        ...

    @property
    def latent_space(self) -> dict[str, Any] | None:
        """The model's, as `LatentSpace.to_dict`; None if unknown."""
        ...

    @property
    def has_targets(self) -> bool:
        """Whether there is golden noise to train on."""
        ...

    @property
    def digest(self) -> str:
        """Hexadecimal digest that names the content of the dataset."""
        ...


class SourceBatch(Protocol):
    """Some rows of a dataset."""

    @property
    def prompts(self) -> Sequence[str]:
        """The prompt of each row."""
        ...

    @property
    def seeds(self) -> Sequence[int]:
        """The seed of each row."""
        ...

    @property
    def source(self) -> Tensor:
        """(B, C, H, W) float32."""
        ...

    @property
    def target(self) -> Tensor:
        """(B, C, H, W) float32."""
        ...


class PairSource(Protocol):
    """A dataset of noise pairs with random access."""

    @property
    def info(self) -> SourceInfo:
        """What the dataset says of itself."""
        ...

    @property
    def prompts(self) -> Sequence[str]:
        """The prompt of every row."""
        ...

    @property
    def shapes(self) -> Sequence[tuple[int, int, int]]:
        """The shapes (C, H, W) of its noise."""
        ...

    @property
    def groups(self) -> np.ndarray:
        """Which of `shapes` the noise of each row has, (rows,)."""
        ...

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int]) -> SourceBatch:
        """The pairs in the given rows, of one shape."""
        ...

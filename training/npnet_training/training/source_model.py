"""The text-to-image model that a dataset was made with."""

from __future__ import annotations

from pathlib import Path

import torch

from npnet_training.errors import DatasetError
from npnet_training.models import load_pipeline
from npnet_training.sampling import Denoiser
from npnet_training.training.source import SourceInfo


def source_denoiser(
    info: SourceInfo, device: torch.device, dtype: torch.dtype = torch.float32, *, offline: bool = False
) -> Denoiser:
    """The denoiser of a dataset's model, at the dataset's revision; imported datasets know none.

    Raises:
        ModelError: it cannot be loaded.
        DatasetError: it is of another revision now.
    """
    # A folder is as it is now, and its revision a digest.
    revision = None if Path(info.model).is_dir() else info.revision
    pipe, found = load_pipeline(info.model, device=device, dtype=dtype, revision=revision, offline=offline)
    require_same(info, "revision", info.revision, found.revision)
    return Denoiser(pipe)


def require_same(info: SourceInfo, what: str, expected: object, given: object) -> None:
    """Refuse a model that is not as the dataset says; None is unknown.

    Raises:
        DatasetError: they differ.
    """
    if None not in (expected, given) and expected != given:
        raise DatasetError(
            f"the pairs are of {info.model} with {what} {expected}, but it has {given} now; collect "
            "again, or give the model back its files"
        )

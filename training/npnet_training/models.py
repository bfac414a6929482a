"""Text-to-image models by name: a diffusers folder, a repository of the hub, or the embedded model."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch

from npnet_runtime.errors import PipelineError
from npnet_runtime.integrations.diffusers.loading import load
from npnet_runtime.weights.models import MODELS
from npnet_runtime.weights.packaged import PACKAGED
from npnet_training.embedded import WORLDS, embedded_folder, find_embedded
from npnet_training.errors import ModelError

EMBEDDED = tuple(name for world in WORLDS.values() for name in world.names)


@dataclass(frozen=True)
class ModelInfo:
    """What a result says of the model it was made with.

    Args:
        name: as it was asked for.
        revision: commit on the hub, or sha256 of the model's index and configurations; None if unknown.
        pipeline_class: in diffusers.
    """

    name: str
    revision: str | None
    pipeline_class: str


def is_name(name: str) -> bool:
    """Whether it is a model's that comes with the project or is registered."""
    return name in PACKAGED or name in EMBEDDED or name in MODELS


def absolute_name(name: str) -> str:
    """A name of the same model in any working folder: a local pipeline's becomes absolute."""
    return str(Path(name).absolute()) if not is_name(name) and Path(name).exists() else name


def load_pipeline(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    offline: bool = False,
) -> tuple[Any, ModelInfo]:
    """A pipeline of diffusers, quiet, on a device.

    Args:
        name: a folder as `save_pretrained` writes it, `owner/repository` on the hub, a file of
            safetensors, a registered model (`npnet-export --list`), or an embedded one: `EMBEDDED`.
        device: where to.
        dtype: of its weights.
        revision: commit, branch or tag on the hub.
        offline: use the hub's cache only.

    Raises:
        ModelError: there is none of that name, it cannot be fetched, or diffusers is missing.
    """
    embedded = PACKAGED[name].base_model if name in PACKAGED else name
    if named := find_embedded(embedded):
        world, variant = named
        pipe = world.load(variant, device=device, dtype=dtype)
        return pipe, ModelInfo(name, None, type(pipe).__name__)
    source = MODELS[name].base_model if name in MODELS else name
    if own := embedded_folder(Path(source)):
        pipe = own.load(dtype=dtype, folder=Path(source))
    else:
        pipe = _load(source, dtype, revision, offline)
    found = getattr(pipe.config, "_commit_hash", None) or _digest(Path(source))
    return pipe.to(device), ModelInfo(name, found, type(pipe).__name__)


def _load(source: str, dtype: torch.dtype, revision: str | None, offline: bool) -> Any:
    try:
        return load(source, dtype, revision=revision, offline=offline)
    except ImportError as error:
        raise ModelError(
            f"loading {source} needs diffusers ({error}): pip install 'npnet-runtime[train]'"
        ) from error
    except PipelineError as error:
        known = ", ".join([*EMBEDDED, *MODELS])
        raise ModelError(
            f"--model {source}: it could not be loaded, nor is it one of {known}: {error}"
        ) from error


def _digest(folder: Path) -> str | None:
    """sha256 of a single file, or over the JSON files of a local pipeline: its shapes, not its weights."""
    if folder.is_file():
        with folder.open("rb") as whole_file:
            return file_digest(whole_file, "sha256").hexdigest()
    if not folder.is_dir():
        return None
    whole = sha256()
    for file in sorted(folder.rglob("*.json")):
        whole.update(f"{file.relative_to(folder)}\n".encode())
        whole.update(file.read_bytes())
    return whole.hexdigest()

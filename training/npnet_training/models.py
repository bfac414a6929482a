"""Text-to-image models by name: a diffusers folder, a repository of the hub, or the embedded model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from npnet_runtime.integrations.diffusers.loading import dtype_option
from npnet_runtime.weights.models import MODELS
from npnet_runtime.weights.packaged import PACKAGED
from npnet_training.errors import ModelError

EMBEDDED = ("shapes", "shapes-weak")


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


def absolute_name(name: str) -> str:
    """A name of the same model in any working folder: that of a local pipeline becomes its absolute path."""
    known = name in PACKAGED or name in EMBEDDED or name in MODELS
    return str(Path(name).absolute()) if not known and Path(name).is_dir() else name


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
        name: a folder as `save_pretrained` writes it, `owner/repository` on the hub, a registered model
            (`npnet-export --list`), or the embedded `shapes`, `shapes-weak`.
        device: where to.
        dtype: of its weights.
        revision: commit, branch or tag on the hub.
        offline: use the hub's cache only.

    Raises:
        ModelError: there is none of that name, it cannot be fetched, or diffusers is missing.
    """
    embedded = PACKAGED[name].base_model if name in PACKAGED else name
    if embedded in EMBEDDED:
        from npnet_training.shapes.assets import load_pipeline as load_shapes

        pipe = load_shapes(unet=embedded.partition("-")[2] or "main", device=device, dtype=dtype)
        return _quiet(pipe), ModelInfo(name, None, type(pipe).__name__)
    source = MODELS[name].base_model if name in MODELS else name
    pipe = _from_pretrained(source, dtype, revision, offline)
    found = getattr(pipe.config, "_commit_hash", None) or _digest(Path(source))
    return _quiet(pipe.to(device)), ModelInfo(name, found, type(pipe).__name__)


def _from_pretrained(source: str, dtype: torch.dtype, revision: str | None, offline: bool) -> Any:
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ModelError(
            f"loading {source} needs diffusers ({error}): pip install 'npnet-runtime[train]'"
        ) from error
    options: dict[str, Any] = {**dtype_option(dtype), **({"revision": revision} if revision else {})}
    load: Callable[..., Any] = DiffusionPipeline.from_pretrained
    try:
        return load(source, local_files_only=offline, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        known = ", ".join([*EMBEDDED, *MODELS])
        raise ModelError(
            f"--model {source}: expected a diffusers folder, a repository of the hub, or one of {known}; "
            f"it could not be loaded: {error}"
        ) from error


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _digest(folder: Path) -> str | None:
    """sha256 over the JSON files of a local pipeline: its shapes and schedules, not its weights."""
    if not folder.is_dir():
        return None
    from hashlib import sha256

    whole = sha256()
    for file in sorted(folder.rglob("*.json")):
        whole.update(f"{file.relative_to(folder)}\n".encode())
        whole.update(file.read_bytes())
    return whole.hexdigest()

"""A LoRA of golden noise as a file: an ordinary LoRA of diffusers that says what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from npnet_runtime.bundles.made_for import LatentSpace
from npnet_runtime.errors import BundleError, CheckpointError
from npnet_runtime.files import atomic_file, sha256

FORMAT, FORMAT_VERSION = "npnet-runtime-lora", 1
FILENAME = "pytorch_lora_weights.safetensors"
_IN_FOLDERS = (FILENAME, "best.safetensors", "last.safetensors")  # the last two as npnet-train names them
KIND = "generator-lora"


@dataclass(frozen=True)
class LoraConfig:
    """What a LoRA of golden noise needs to be used.

    Args:
        model: in front of which it was trained.
        component: of the pipeline that it changes, `transformer` or `unet`.
        component_class: of that part in diffusers.
        latent_channels: C of the noise.
        rank: of its weights.
        last: name of the component's last layer, of whose output only the LoRA's part counts.
        timestep: of the scheduler, at which the denoiser is asked for a change.
        latent_space: as `LatentSpace.to_dict`; None if unknown.
    """

    model: str
    component: str
    component_class: str
    latent_channels: int
    rank: int
    last: str
    timestep: float
    latent_space: dict[str, Any] | None = None
    kind: str = KIND

    @property
    def space(self) -> LatentSpace | None:
        """The latent space that it was trained in."""
        return None if self.latent_space is None else LatentSpace.from_dict(self.latent_space)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: a field is missing, unknown or of another type.
        """
        texts = ("model", "component", "component_class", "last")
        if (
            not isinstance(values, dict)
            or set(values) != {item.name for item in fields(cls)}
            or values["kind"] != KIND
            or not all(isinstance(values[name], str) for name in texts)
            or not all(type(values[name]) is int and values[name] > 0 for name in ("rank", "latent_channels"))
            or not isinstance(values["timestep"], int | float)
        ):
            raise CheckpointError(f"malformed metadata of a LoRA of golden noise: {values}")
        return cls(**values)


def find_lora(source: str | Path) -> Path | None:
    """The file of a LoRA of golden noise: it, or the one in a folder; None for anything else."""
    path = Path(source).expanduser()
    if path.is_dir():
        path = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), path)
    if not path.is_file() or path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return path if FORMAT in (file.metadata() or {}) else None
    except (SafetensorError, OSError):
        return None


def write_lora(path: Path, weights: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Write the file, whole or not at all.

    Args:
        path: where.
        weights: as `Adapter.weights` names them.
        config: for the metadata.

    Raises:
        CheckpointError: it cannot be written.
    """
    header = {"format_version": FORMAT_VERSION, "config": config.to_dict()}
    tensors = {
        f"{config.component}.{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()
    }
    try:
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, {FORMAT: json.dumps(header, sort_keys=True)})
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot write the LoRA: {error}") from error


def read_lora(source: str | Path) -> tuple[LoraConfig, dict[str, Tensor], str]:
    """What `write_lora` wrote: its configuration, its weights by `Adapter`'s names, its sha256.

    Raises:
        CheckpointError: it is no such file, or a damaged one.
    """
    path = find_lora(source)
    if path is None:
        raise CheckpointError(
            f"{source}: expected a LoRA of golden noise, as npnet-train --network.kind {KIND} writes it, or "
            f"a folder with {FILENAME}; found none"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[FORMAT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: expected format version {FORMAT_VERSION}, given {header['format_version']}: "
                "pip install -U npnet-runtime"
            )
        config = LoraConfig.from_dict(header["config"])
        _ = config.space
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, BundleError) as error:
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}: {error})") from error
    prefix = f"{config.component}."
    weights = {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items()}
    if f"{config.last}.lora_A.weight" not in weights:
        raise CheckpointError(f"{path}: expected weights of the last layer, {config.last}, found none")
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{path}: {bad[0]} is not finite")
    return config, weights, sha256(path)

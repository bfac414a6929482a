"""NPNet checkpoints: the three forms in the wild, and the one this project writes.

========================  ==================================================================
form                      layout
========================  ==================================================================
`pth`                     a dict of state dicts: `unet_svd`, `unet_embedding`, `embeeding`
                          (so spelt), and the tensors `alpha` and `beta`
`safetensors/embeeding`   the same keys, joined by dots
`safetensors/text_embedding`  the same with `text_embedding.` for `embeeding.`
`npnet-runtime`           safetensors with the names of the network's `state_dict`,
                          and its kind and configuration in the metadata
========================  ==================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from npnet_runtime.errors import CheckpointError
from npnet_runtime.files import atomic_file, sha256
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.registry import (
    Network,
    NetworkConfig,
    config_from_dict,
    network_for,
    network_from_state,
)
from npnet_runtime.weights.models import MODELS
from npnet_runtime.weights.pickled import load_pickled
from npnet_runtime.weights.published import GROUPS, TEXT_GROUPS, is_unused, published_name

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PREFIX = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")
FORMAT, FORMAT_VERSION, WITH_OWN_TEXT = "npnet-runtime-checkpoint", 1, 2


@dataclass(frozen=True)
class Checkpoint:
    """Weights in this project's names, and where they came from.

    Args:
        state: float32 tensors by the names of the network's `state_dict`.
        config: shapes of the network they fit.
        form: one of the forms in the module's table.
        sha256: of the file that was read.
        made_for: what it was trained in front of, as plain values: `latent_space` and `text_encoder` of the
            manifest that is made of it; empty if unknown.
    """

    state: dict[str, Tensor]
    config: NetworkConfig
    form: str
    sha256: str
    made_for: Mapping[str, Any] = field(default_factory=dict)

    def network(self) -> Network:
        """The network with these weights, in eval mode."""
        return network_from_state(self.config, self.state)


def read(path: str | Path, config: NetworkConfig | None = None) -> Checkpoint:
    """Read a checkpoint of any form; nothing in it is executed.

    Args:
        path: the file.
        config: the network it must fit. Published forms do not say theirs, so they need one;
            the project's own form needs none, and is compared with it when given.

    Raises:
        CheckpointError: missing, unreadable, foreign, incomplete, or made for another network.
    """
    path = Path(path)
    tensors, metadata = _load(path)
    made_for: Mapping[str, Any] = {}
    if FORMAT in metadata:
        form, (given, made_for) = FORMAT, _parse_header(path, metadata[FORMAT])
        if config is not None and given != config:
            raise CheckpointError(
                f"{path} is a checkpoint of another network:\n{_differences(config, given)}"
            )
        config, shapes = given, _shapes(given)
        names = {name: name for name in shapes}
    else:
        if not isinstance(config, NPNetConfig):
            raise CheckpointError(f"{path}: a published checkpoint does not say its shapes; name its model")
        _require_published(path, tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if not is_unused(name)}
        text = next((group for group in TEXT_GROUPS if f"{group}.linear.weight" in tensors), TEXT_GROUPS[0])
        form = f"safetensors/{text}" if _is_safetensors(path) else "pth"
        shapes = _shapes(config)
        names = {name: published_name(name, text) for name in shapes}
    _check(path, tensors, {names[name]: shape for name, shape in shapes.items()})
    state = {own: tensors[name].detach().float().contiguous() for own, name in names.items()}
    state |= {name: state[name].reshape(()) for name in ("alpha", "beta") if name in state}
    return Checkpoint(state, config, form, sha256(path), made_for)


def write(
    path: str | Path,
    state: Mapping[str, Tensor],
    config: NetworkConfig,
    made_for: Mapping[str, Any] | None = None,
) -> None:
    """Write the project's own form: safetensors with the configuration in the metadata.

    Args:
        path: where; written to a temporary name first, then renamed.
        state: every tensor of `network_for(config).state_dict()`.
        config: shapes of the network.
        made_for: see `Checkpoint`.

    Raises:
        CheckpointError: the state does not fit the configuration, or the file cannot be written.
    """
    path = Path(path)
    _check(path, state, _shapes(config))
    # One entry: safetensors writes several in random order, and the same weights are to give the same file.
    header: dict[str, Any] = {"format_version": FORMAT_VERSION, "config": config.to_dict()}
    if made_for:
        header |= {"made_for": dict(made_for)}
    if "text_encoder" in header.get("made_for", {}):
        header["format_version"] = WITH_OWN_TEXT  # who does not know of it must not read it
    metadata = {FORMAT: json.dumps(header, sort_keys=True)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot write the checkpoint: {error}") from error


def _load(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors of a file of any form by their names without prefixes, and its metadata."""
    if not path.is_file():
        found = "a directory" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: expected a checkpoint file, found {found}")
    tensors, metadata = _load_safetensors(path) if _is_safetensors(path) else (load_pickled(path), {})
    return _without_prefixes(path, tensors), metadata


def _is_safetensors(path: Path) -> bool:
    # By content, not by name: 8 bytes of header length, then JSON. A .pth is a zip or a pickle.
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:9] == b"{"


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or damaged safetensors file ({error})") from error


def _without_prefixes(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By their names in the network, which one that was wrapped or compiled saves behind prefixes."""
    plain = {_PREFIX.sub(r"\1", name): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        raise CheckpointError(
            f"{path}: expected each tensor once, given some both with and without `module.` or `_orig_mod.` "
            f"in their names; keep one of them"
        )
    return plain


def own_config(path: str | Path) -> NetworkConfig | None:
    """Configuration in a checkpoint of the project's own form, without reading its tensors; else None.

    Raises:
        CheckpointError: a safetensors file that is damaged.
    """
    path = Path(path)
    if not path.is_file() or not _is_safetensors(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or damaged safetensors file ({error})") from error
    return _parse_header(path, metadata[FORMAT])[0] if FORMAT in metadata else None


def _parse_header(path: Path, text: str) -> tuple[NetworkConfig, Mapping[str, Any]]:
    try:
        header = json.loads(text)
        version = header["format_version"]
        made_for = dict(header.get("made_for", {}))
        wanted = WITH_OWN_TEXT if "text_encoder" in made_for else FORMAT_VERSION
        config = config_from_dict(header["config"]) if version == wanted else None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: unreadable metadata ({error})") from error
    if config is None:
        raise CheckpointError(
            f"{path}: expected checkpoint format version {wanted}, given {version}: "
            f"pip install -U npnet-runtime"
        )
    return config, made_for


def _require_published(path: Path, tensors: Mapping[str, Tensor]) -> None:
    groups = {name.partition(".")[0] for name in tensors}
    if not groups & {*GROUPS, *TEXT_GROUPS}:
        raise CheckpointError(
            f"{path} is no NPNet checkpoint: expected the groups {', '.join(GROUPS)} and "
            f"{' or '.join(TEXT_GROUPS)}; given {', '.join(sorted(groups)[:8]) or 'no tensors'}"
        )


def _shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in network_for(config).state_dict().items()}


def _check(path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing: {name} {list(shapes[name])}" for name in shapes if name not in tensors]
    problems += [f"unexpected: {name} {list(tensors[name].shape)}" for name in tensors if name not in shapes]
    for name in shapes.keys() & tensors.keys():
        given, shape = tensors[name], shapes[name]
        if tuple(given.shape) != shape and not (shape == () and given.numel() == 1):
            problems.append(f"misshapen: {name}: expected {list(shape)}, given {list(given.shape)}")
        elif given.dtype not in _DTYPES:
            problems.append(f"not floating point: {name}: expected 16 to 64 bits, given {given.dtype}")
        elif given.layout != torch.strided or given.is_meta:
            problems.append(f"no dense values: {name}: given layout {given.layout} on {given.device}")
        elif not given.float().isfinite().all():
            problems.append(f"not finite in float32: {name}")
    if problems:
        shown = [*sorted(problems)[:10], *([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])]
        hint = _model_hint(tensors)
        raise CheckpointError("\n  ".join([f"{path} does not fit the network{hint}:", *shown]))


def fitting_models(path: str | Path) -> list[str]:
    """The released models whose noise and text a checkpoint of a published form fits; empty for none.

    Raises:
        CheckpointError: missing or unreadable.
    """
    return _fitting(_load(Path(path))[0])


def _model_hint(tensors: Mapping[str, Tensor]) -> str:
    fitting = _fitting(tensors)
    return f" (its text affine is that of --model {' or '.join(fitting)})" if fitting else ""


def _fitting(tensors: Mapping[str, Tensor]) -> list[str]:
    """The models whose text the checkpoint reads, when it has a text affine at all."""
    for name, tensor in tensors.items():
        if (
            name.endswith((*(f"{group}.linear.weight" for group in TEXT_GROUPS), "text_affine.weight"))
            and tensor.ndim == 2
        ):
            width = tensor.shape[1]
            return [m.name for m in MODELS.values() if width == m.config.text_tokens * m.config.text_dim]
    return []


def _differences(expected: NetworkConfig, given: NetworkConfig) -> str:
    other = given.to_dict()
    return "\n".join(
        f"  {name}: expected {value}, given {other.get(name)}"
        for name, value in expected.to_dict().items()
        if value != other.get(name)
    )

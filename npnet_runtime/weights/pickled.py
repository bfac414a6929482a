"""Tensors of a `.pth` file, read without executing anything in it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npnet_runtime.errors import CheckpointError

_SCALAR = np.float64(0).__reduce__()[0]
_RECONSTRUCT = np.empty(0).__reduce__()[0]
# What scripts save beside weights, and what only holds values. NumPy 2 renamed the module of its own.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *(value for name, value in vars(np.dtypes).items() if name.endswith("DType")),
    *(
        (function, f"numpy.{package}.multiarray.{name}")
        for package in ("core", "_core")
        for function, name in ((_SCALAR, "scalar"), (_RECONSTRUCT, "_reconstruct"))
    ),
]
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def load_pickled(path: Path) -> dict[str, Tensor]:
    """Tensors by name; those of a dict of state dicts have its key before them.

    A dict that trainers wrap around it, `{"state_dict": ...}`, is looked into.

    Raises:
        CheckpointError: truncated, foreign, or with objects in it that only running their code would make.
    """
    content = _load(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a dict of state dicts, given {type(content).__name__}")
    for wrapper in _WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping) and _tensors(inner):
            content = inner
            break
    return _tensors(content)


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for group, value in content.items():
        items = value.items() if isinstance(value, Mapping) else [(None, value)]
        for key, tensor in items:
            if isinstance(tensor, Tensor):
                tensors[f"{group}.{key}" if key is not None else str(group)] = tensor
    return tensors


def _load(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling foreign bytes may raise anything
        # Not torch's own text, which advises to load it without `weights_only`.
        raise CheckpointError(
            f"{path}: expected a checkpoint that holds tensors only (.pth or .safetensors), given "
            f"{_found(path)} ({type(error).__name__})"
        ) from error


def _found(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(7) == b"version":
            return "a git-lfs pointer; run git lfs pull"
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no zip file of torch's: as above
        objects = []
    if not objects:
        return "a truncated, damaged or foreign file"
    return (
        f"objects of {', '.join(sorted(objects)[:6])} beside them, which only running code could read; where "
        f"the file is trusted and these are installed, keep its state dicts only and write them again with "
        f"safetensors.torch.save_file"
    )

"""The state of a training run on disk: safetensors and JSON, nothing that is executed when read.

accelerate's own `save_state` pickles optimizer and random states, and passes over random states that it
cannot read. Here all that is random is a function of the seed and the step, and the learning rate of the
step, so a state is the weights, their average, the optimizer's moments and a few counters. Tensors are
written whole, not sharded: a run may go on with another number of processes, or without FSDP.

    RUN/state-00001200/tensors.safetensors    weights.*, average.*, optimizer.*
    RUN/state-00001200/state.json             counters, settings, network, digest of the dataset

A folder appears under its name when it is complete; the one before is deleted after that. Killed at any
moment, one of the two is there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from npnet_runtime.files import atomic_directory
from npnet_runtime.networks.registry import NetworkConfig
from npnet_training.errors import TrainError
from npnet_training.settings import differences
from npnet_training.training.averaging import WeightAverage
from npnet_training.training.settings import RESUMABLE, TrainSettings
from npnet_training.training.source import SourceInfo

FORMAT_VERSION = 2
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def require_folder(run: Path, *, resume: bool) -> None:
    """Make the folder of a run; one that is not empty may only be gone on with.

    Raises:
        TrainError: it is not empty, or cannot be written.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())) and not resume:
        raise TrainError(f"{run} is not empty: go on with --resume, or give another --output")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainError(f"--output {run}: cannot be written ({error})") from error


def identity_of(settings: TrainSettings, info: SourceInfo, config: NetworkConfig) -> dict[str, Any]:
    """What must be the same when a run is resumed: settings, network and data, as they are read back."""
    values = settings.model_dump(mode="json", exclude=set(RESUMABLE) | {"data"})
    identity = {"settings": values, "data": info.digest, "network": config.to_dict()}
    read: dict[str, Any] = json.loads(json.dumps(identity))  # without tuples
    return read


def require_same_run(folder: Path, found: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse a state of other settings, another network or other data than a run's own.

    Raises:
        TrainError: they differ.
    """
    # A run that was begun before there was a setting is one with its default.
    before = _completed(found["settings"], TrainSettings(data=("",), output=Path()).model_dump(mode="json"))
    wrong = differences(before, own["settings"]) + differences(found["network"], own["network"])
    if found["data"] != own["data"]:
        wrong.append("data: other pairs than it began with")
    if wrong:
        raise TrainError(f"--resume: {folder} is of another run:\n  " + "\n  ".join(wrong))


def _completed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Values, and the defaults of those that are not there, at every depth."""
    found = {**defaults, **values}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(found[name], dict):
            found[name] = _completed(found[name], default)
    return found


def whole_weights(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights by name, on the CPU; gathered with FSDP, and empty but on the first process.

    Every process must call it.
    """
    found = get_model_state_dict(network, options=_WHOLE)
    # On the CPU what is found is the parameters' own memory, which changes when an average is taken back.
    return {name: value.clone() for name, value in found.items() if isinstance(value, Tensor)}


def gather_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors of a run, whole, and the optimizer's groups as plain values.

    Every process must call it; both are empty but on the first.

    Returns:
        Tensors by `weights.NAME`, `average.NAME` and `optimizer.NAME/MOMENT`; the groups.
    """
    tensors = {f"weights.{name}": value for name, value in whole_weights(network).items()}
    if average.decay:
        with average.applied():
            tensors |= {f"average.{name}": value for name, value in whole_weights(network).items()}
    found: dict[str, Any] = get_optimizer_state_dict(network, optimizer, options=_WHOLE)
    for name, moments in found.get("state", {}).items():
        tensors |= {f"optimizer.{name}/{moment}": value for moment, value in moments.items()}
    return tensors, found.get("param_groups", [])


def write_state(run: Path, step: int, tensors: dict[str, Tensor], content: dict[str, Any]) -> Path:
    """Write the state after `step` steps and delete the one before. For the first process only.

    Raises:
        TrainError: the folder cannot be written, or is full; the state before is kept.
    """
    target = run / f"state-{step:08d}"
    try:
        with atomic_directory(target, replace=True) as folder:
            # A copy each: moments may share memory, which safetensors does not allow.
            save_file({k: v.clone().contiguous() for k, v in tensors.items()}, folder / "tensors.safetensors")
            document = {"format_version": FORMAT_VERSION, "step": step, **content}
            (folder / "state.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise TrainError(
            f"{target}: cannot write the training state ({error}); the one before is kept. "
            "Make room and go on with --resume"
        ) from error
    for old in run.glob("state-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    for unfinished in run.glob(".state-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def last_state(run: Path) -> Path | None:
    """Folder of the newest training state of a run."""
    return max(run.glob("state-*"), default=None)


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_state` wrote.

    Raises:
        TrainError: damaged, or of another version.
    """
    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "tensors.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainError(f"{folder}: damaged training state ({error}); delete it to start again") from error
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise TrainError(f"{folder}: expected a training state of format version {FORMAT_VERSION}")
    return tensors, content


def restore(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    tensors: dict[str, Tensor],
    groups: list[dict[str, Any]],
) -> None:
    """Put a state back, bit by bit, into what has been prepared for training; every process must call it."""
    parts: dict[str, dict[str, Any]] = {"weights": {}, "average": {}, "optimizer": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    if average.decay:
        set_model_state_dict(network, parts["average"], options=_WHOLE)
        average.reset()
    set_model_state_dict(network, parts["weights"], options=_WHOLE)
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in parts["optimizer"].items():
        name, _, moment = key.rpartition("/")
        moments.setdefault(name, {})[moment] = value
    state: dict[str, Any] = {"state": moments, "param_groups": groups}
    set_optimizer_state_dict(network, optimizer, state, options=_WHOLE)

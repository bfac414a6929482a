"""Engines made from weights on first use, and found again by the sha256 of the weights."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.errors import BackendError, BundleError, CheckpointError, InputError
from npnet_runtime.files import sha256
from npnet_runtime.integrations.comfyui.files import folders
from npnet_runtime.integrations.comfyui.host import AUTO, say
from npnet_runtime.weights.checkpoint import fitting_models, own_config
from npnet_runtime.weights.models import MODELS as RELEASED

MODELS = (AUTO, *RELEASED)
KINDS = ("torch", AUTO, "onnxruntime", "openvino", "aoti")
PRECISIONS = (AUTO, "fp32", "fp16", "bf16")
MADE = ".engines"
"""Hidden folder beside the weights' own, of what was made of them; it may be deleted."""
_PACKAGES = ("npnet_kernels", "npnet_runtime", "npnet_export")
_LINE = re.compile(r"\[ *[\d.]+ s\] *")


def weights_digest(path: Path) -> str:
    """sha256 of a file of weights, computed again only when it changed.

    Raises:
        InputError: no such file.
    """
    try:
        status = path.stat()
        if not path.is_file():
            raise InputError(f"weights: expected a file, given {path}")
    except OSError as error:
        raise InputError(f"weights: {path} cannot be read ({error})") from error
    return _digest(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=32)
def _digest(path: Path, modified: int, size: int) -> str:
    return sha256(path)


def converted(
    path: Path,
    model: str,
    kind: str,
    precision: str,
    device: str,
    node: str | None = None,
    *,
    anew: bool = False,
) -> EngineBundle:
    """The engine that was made of weights, which is made now if there is none.

    Args:
        path: of the checkpoint, of any form.
        model: whose weights they are; `auto` for the first that they fit.
        kind: of engine.
        precision: `auto` for that of the kind.
        device: it is to run on; empty for the default.
        node: that is told how far it is.
        anew: make it even if there is one.

    Raises:
        CheckpointError: they fit no model.
        InputError: no such file.
        BackendError: the export failed.
    """
    digest = weights_digest(path)
    torch_version = torch.__version__.partition("+")[0]
    words = (
        digest[:16],
        model,
        kind,
        precision,
        device.replace(":", "") or "default",
        f"torch{torch_version}",
    )
    target = (folders() or [path.parent])[0] / MADE / "-".join(words)
    if target.is_dir() and not anew:
        try:
            return EngineBundle.open(target)
        except BundleError:  # damaged: it is only a copy of the weights
            pass
    if model == AUTO and own_config(path) is not None:
        model = ""  # it says so itself
    elif model == AUTO:
        fitting = fitting_models(path)
        if not fitting:
            raise CheckpointError(
                f"weights: {path.name} fits none of {', '.join(RELEASED)}; choose its model"
            )
        model = fitting[0]
    _export(path, model, kind, precision, device, target, node)
    return EngineBundle.open(target)


def _export(
    path: Path, model: str, kind: str, precision: str, device: str, target: Path, node: str | None
) -> None:
    """In a process of its own: what an export imports and allocates goes away with it."""
    command = [
        sys.executable,
        "-m",
        "npnet_export",
        "--weights",
        str(path),
        "--output",
        str(target),
        "--force",
    ]
    command += ["--model", model] if model else []
    command += ["--engine", kind]
    command += ["--precision", precision] if precision != AUTO else []
    command += ["--device", device] if device else []
    say(f"making an engine of {path.name}, once", node)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*_roots(), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = []
        for line in process.stderr or ():
            lines.append(line.rstrip())
            if _LINE.match(line):
                say(_LINE.sub("", line).strip(), node)
    if process.returncode:
        said = "\n".join(line for line in lines if not _LINE.match(line))[-2000:]
        raise BackendError(f"weights: no engine could be made of {path.name}:\n{said}")


def _roots() -> list[str]:
    """Folders from which another process imports the packages that this one has imported."""
    specs = [importlib.util.find_spec(name) for name in _PACKAGES]
    missing = [name for name, spec in zip(_PACKAGES, specs, strict=True) if spec is None]
    if missing:
        raise BackendError(f"weights: {', '.join(missing)} cannot be imported: pip install npnet-runtime")
    return [str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin]

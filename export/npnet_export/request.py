"""What a kind of engine is given to build from, and what it says of what it built."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from npnet_export.errors import ExportError
from npnet_runtime.networks.registry import Network


@dataclass(frozen=True)
class BuilderOptions:
    """Options that some kinds of engine take; None and False mean the engine's own default.

    Args:
        opt_batch: batch the engine is tuned for.
        optimization_level: effort of the builder, 0 to 5.
        workspace_mb: most GPU memory a layer may use as scratch space.
        compute_capability: of the GPUs to build for.
        hardware_compatibility: `same-compute-capability` or `ampere-plus`.
        openvino_device: `CPU`, `GPU`, `GPU.1`, `NPU`: where OpenVINO computes.
        version_compatible: the engine also runs in later versions of the library.
    """

    opt_batch: int | None = None
    optimization_level: int | None = None
    workspace_mb: int | None = None
    compute_capability: tuple[str, ...] = ()
    hardware_compatibility: str | None = None
    openvino_device: str | None = None
    version_compatible: bool = False

    def given(self) -> dict[str, Any]:
        """The options that were given, as the manifest keeps them: by the name of their flag."""
        return {
            f"--{name.replace('_', '-')}": list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value not in (None, False, ())
        }

    @classmethod
    def from_given(cls, given: dict[str, Any]) -> BuilderOptions:
        """The options that `given` returned."""
        values: dict[str, Any] = {
            name[2:].replace("-", "_"): tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
        return cls(**values)

    def require_only(self, allowed: tuple[str, ...], engine: str) -> None:
        """Refuse an option that the engine does not take.

        Raises:
            ExportError: one was given.
        """
        known = {f"--{item.name.replace('_', '-')}" for item in fields(self) if item.name in allowed}
        foreign = sorted(set(self.given()) - known)
        if foreign:
            takes = ", ".join(sorted(known)) or "none of these options"
            raise ExportError(f"{', '.join(foreign)}: --engine {engine} takes {takes}")


@dataclass(frozen=True)
class BuildRequest:
    """What to build an engine from.

    Args:
        network: in the bundle's precision, on the CPU, in eval mode.
        folder: where its files go.
        precision: `fp32`, `fp16` or `bf16`.
        device: the engine will be compared with PyTorch there.
        max_batch: largest batch of one run.
        options: see `BuilderOptions`.
        stage: told what happens next.
    """

    network: Network
    folder: Path
    precision: str
    device: torch.device
    max_batch: int
    options: BuilderOptions
    stage: Callable[[str], None]

    def on_device(self) -> AbstractContextManager[object]:
        """Make the device the current one of this thread, as builders expect."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


@dataclass(frozen=True)
class Binding:
    """What a built engine needs of a machine; the fields are those of `Manifest`."""

    requires: dict[str, str]
    device: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    platform: dict[str, str] = field(default_factory=dict)

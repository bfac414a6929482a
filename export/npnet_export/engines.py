"""The kinds of engine an export can write: one function each, from network to files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from npnet_export.errors import ExportError
from npnet_runtime.backends.torch_backend import DTYPES, WEIGHTS
from npnet_runtime.network import FLOAT32_PARTS, NPNet


@dataclass(frozen=True)
class EngineKind:
    """A kind of engine.

    Args:
        description: for `--list`.
        precisions: it can be built in.
        requires: package -> version condition that a bundle of this kind puts on its machine.
        write: writes its files; takes the network in the bundle's precision, and a folder.
    """

    description: str
    precisions: tuple[str, ...]
    requires: dict[str, str]
    write: Callable[[NPNet, Path], None]


def _write_torch(network: NPNet, folder: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / WEIGHTS)


def _write_onnxruntime(network: NPNet, folder: Path) -> None:
    from npnet_export.onnx_graphs import write_graphs

    write_graphs(network, folder)


ENGINES: dict[str, EngineKind] = {
    "onnxruntime": EngineKind(
        "ONNX graphs in ONNX Runtime, CPU or CUDA; the fastest on a CPU",
        ("fp32", "fp16", "bf16"),
        {"onnxruntime": ">=1.22"},
        _write_onnxruntime,
    ),
    "torch": EngineKind(
        "PyTorch, CPU or CUDA; needs nothing but torch",
        ("fp32", "fp16", "bf16"),
        {"torch": ">=2.11"},
        _write_torch,
    ),
}


def in_precision(network: NPNet, precision: str) -> NPNet:
    """A copy of a float32 network with its products in another precision (see `NPNet.to_precision`)."""
    return NPNet.from_state(network.config, network.state_dict()).to_precision(DTYPES[precision])


def float32_parts(precision: str) -> tuple[str, ...]:
    """What stays float32, for the manifest."""
    return ("everything",) if precision == "fp32" else FLOAT32_PARTS


def check_precision(engine: str, precision: str, device: torch.device) -> None:
    """Refuse a precision that the engine could not be checked in on this device.

    Raises:
        ExportError: ONNX Runtime has no bfloat16 products on the CPU.
    """
    if engine == "onnxruntime" and precision == "bf16" and device.type == "cpu":
        raise ExportError(
            "--precision bf16: ONNX Runtime's CPU provider has no bfloat16 products, so the engine could not "
            "be checked here; use --precision fp16, or --engine torch, or export on a machine with CUDA"
        )

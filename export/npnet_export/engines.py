"""The kinds of engine an export can write: one function each, from network to files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors.torch import save_file

from npnet_export.errors import ExportError
from npnet_export.request import Binding, BuildRequest
from npnet_runtime.backends.torch_backend import DTYPES, WEIGHTS
from npnet_runtime.network import FLOAT32_PARTS, NPNet


@dataclass(frozen=True)
class EngineKind:
    """A kind of engine.

    Args:
        description: for `--list`.
        write: writes the files, and says what they are bound to.
        options: fields of `BuilderOptions` it takes.
        precisions: it can be built in.
    """

    description: str
    write: Callable[[BuildRequest], Binding]
    options: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32", "fp16", "bf16")


def _write_torch(request: BuildRequest) -> Binding:
    state = {name: tensor.contiguous() for name, tensor in request.network.state_dict().items()}
    save_file(state, request.folder / WEIGHTS)
    return Binding({"torch": ">=2.11"})


def _write_onnxruntime(request: BuildRequest) -> Binding:
    from npnet_export.onnx_graphs import write_graphs

    write_graphs(request.network, request.folder)
    return Binding({"onnxruntime": ">=1.22"})


def _write_aoti(request: BuildRequest) -> Binding:
    from npnet_export.aoti import write_aoti

    return write_aoti(request)


ENGINES: dict[str, EngineKind] = {
    "onnxruntime": EngineKind(
        "ONNX graphs in ONNX Runtime, CPU or CUDA; the fastest on a CPU", _write_onnxruntime
    ),
    "torch": EngineKind("PyTorch, CPU or CUDA; needs nothing but torch", _write_torch),
    "aoti": EngineKind(
        "machine code by AOTInductor, for the CPU or GPU it was built on; needs g++ to build", _write_aoti
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

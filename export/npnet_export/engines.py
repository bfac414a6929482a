"""The kinds of engine an export can write: one function each, from network to files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from safetensors.torch import save_file

from npnet_export.errors import ExportError
from npnet_export.needs import RUNS_WITH, check_needs
from npnet_export.request import Binding, BuilderOptions, BuildRequest
from npnet_runtime.backends.machine import cuda_capabilities
from npnet_runtime.backends.openvino_backend import TARGET_OPTION, TARGETS, target_obstacle
from npnet_runtime.backends.openvino_backend import devices as openvino_devices
from npnet_runtime.backends.selection import runs_on
from npnet_runtime.backends.torch_backend import DTYPES, WEIGHTS
from npnet_runtime.networks import npnet, prompt_attention
from npnet_runtime.networks.registry import Network, network_from_state


@dataclass(frozen=True)
class EngineKind:
    """A kind of engine.

    Args:
        description: for `--list`.
        write: writes the files, and says what they are bound to.
        options: fields of `BuilderOptions` it takes.
        devices: types of device it runs on.
    """

    description: str
    write: Callable[[BuildRequest], Binding]
    options: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")


def _write_torch(request: BuildRequest) -> Binding:
    state = {name: tensor.contiguous() for name, tensor in request.network.state_dict().items()}
    save_file(state, request.folder / WEIGHTS)
    return Binding({"torch": ">=2.6"})


def _write_onnxruntime(request: BuildRequest) -> Binding:
    from npnet_export.onnx_graphs import write_graphs

    write_graphs(request.network, request.folder)
    return Binding(RUNS_WITH["onnxruntime"])


def _write_openvino(request: BuildRequest) -> Binding:
    # In float32 whatever the precision: OpenVINO is told it when it loads them, and casts by itself.
    from npnet_export.onnx_graphs import write_graphs

    state = {name: tensor.float() for name, tensor in request.network.state_dict().items()}
    write_graphs(network_from_state(request.network.config, state), request.folder)
    return Binding(RUNS_WITH["openvino"], "cpu")


def _write_aoti(request: BuildRequest) -> Binding:
    from npnet_export.aoti import write_aoti

    return write_aoti(request)


def _write_tensorrt(engine: str, request: BuildRequest) -> Binding:
    from npnet_export.tensorrt import write_tensorrt

    return write_tensorrt(engine, request)


_TENSORRT_OPTIONS = ("opt_batch", "optimization_level", "workspace_mb")
ENGINES: dict[str, EngineKind] = {
    "onnxruntime": EngineKind(
        "ONNX graphs in ONNX Runtime, CPU or CUDA; the fastest on a CPU", _write_onnxruntime
    ),
    "openvino": EngineKind(
        "the same graphs in OpenVINO: CPU, bf16 where it has AMX or AVX512-BF16; or Intel's GPU or NPU",
        _write_openvino,
        ("openvino_device",),
        ("cpu",),
    ),
    "torch": EngineKind("PyTorch, CPU or CUDA; needs nothing but torch", _write_torch),
    "aoti": EngineKind(
        "machine code by AOTInductor, for the CPU or GPU it was built on; needs g++ to build", _write_aoti
    ),
    "tensorrt": EngineKind(
        "TensorRT, for the kind of GPU it was built on",
        partial(_write_tensorrt, "tensorrt"),
        (*_TENSORRT_OPTIONS, "hardware_compatibility", "version_compatible"),
        ("cuda",),
    ),
    "tensorrt-rtx": EngineKind(
        "TensorRT for RTX, for GeForce and RTX GPUs; needs no GPU to build",
        partial(_write_tensorrt, "tensorrt-rtx"),
        (*_TENSORRT_OPTIONS, "compute_capability"),
        ("cuda",),
    ),
}


def in_precision(network: Network, precision: str) -> Network:
    """A copy of a float32 network with its products in another precision (see its `to_precision`)."""
    return network_from_state(network.config, network.state_dict()).to_precision(DTYPES[precision])


def float32_parts(network: Network, precision: str) -> tuple[str, ...]:
    """What stays float32, for the manifest."""
    if precision == "fp32":
        return ("everything",)
    return npnet.FLOAT32_PARTS if isinstance(network, npnet.NPNet) else prompt_attention.FLOAT32_PARTS


def check_engine(
    engine: str,
    precision: str,
    options: BuilderOptions,
    max_batch: int,
    device: torch.device,
    verify: bool = True,
    downloads: bool = False,
) -> None:
    """Refuse what the engine cannot do, or could not be checked to do on this device.

    Raises:
        ExportError: an option is foreign or out of range, a package is missing, or the engine could not be
            compared with float32 PyTorch here and `verify` asks for it.
        BackendError: TensorRT is missing.
    """
    options.require_only(ENGINES[engine].options, engine)
    target = options.openvino_device
    if target is not None and target.partition(".")[0] not in TARGETS:
        raise ExportError(f"{TARGET_OPTION}: expected {', '.join(TARGETS)} or GPU.1, given {target}")
    capabilities: tuple[str, ...] = ()
    if engine in ("tensorrt", "tensorrt-rtx"):
        from npnet_export.tensorrt import check_tensorrt, targets

        check_tensorrt(engine, options, max_batch, device)
        capabilities = targets(engine, options, device)
    check_needs(engine, verify=verify, downloads=downloads)
    obstacle = unverifiable(engine, precision, capabilities, device, options)
    if verify and obstacle:
        raise ExportError(
            f"--engine {engine} --precision {precision} could not be compared with float32 PyTorch here: "
            f"{obstacle}. To write it unchecked pass --no-verify, and run "
            f"`npnet-export verify DIR --record` on a machine that can"
        )


def unverifiable(
    engine: str,
    precision: str,
    capabilities: tuple[str, ...],
    device: torch.device,
    options: BuilderOptions | None = None,
) -> str | None:
    """Why an engine cannot run on this device, or None if it can.

    Args:
        engine: a key of `ENGINES`.
        precision: of its products.
        capabilities: the GPUs it is for; empty for any.
        device: where it would be compared with float32 PyTorch.
        options: of the build.
    """
    if engine == "onnxruntime" and precision == "bf16" and device.type == "cpu":
        return (
            "ONNX Runtime's CPU provider has no bfloat16 products; use --precision fp16, or --engine torch, "
            "or export on a machine with CUDA"
        )
    if device.type not in ENGINES[engine].devices:
        return f"it runs on {' or '.join(ENGINES[engine].devices)}, given the device {device}"
    if engine == "openvino":
        target = (options and options.openvino_device) or "CPU"
        return target_obstacle(target, precision, openvino_devices())
    found = cuda_capabilities()
    if capabilities and not runs_on(found[device.index or 0], capabilities):
        return f"it is built for compute capability {', '.join(capabilities)}, {device} has another"
    return None

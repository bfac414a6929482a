"""The OpenVINO back end: the same ONNX graphs on a CPU, in float32 or bfloat16; or on Intel's GPU or NPU."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.backends.base import empty_outputs, graph_threads
from npnet_runtime.backends.pool import Pool
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.bundles.manifest import Manifest
from npnet_runtime.errors import BackendError, BundleError
from npnet_runtime.networks.graphs import Graph, Shape, graphs

SUFFIX = ".onnx"
TARGETS = ("CPU", "GPU", "NPU")
"""Kinds of device of OpenVINO; tensors are on the CPU whichever it is."""
TARGET_OPTION = "--openvino-device"
"""Option of the build that names one."""
PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
# What `OPTIMIZATION_CAPABILITIES` says of a device that computes in a precision, and does not emulate it.
CAPABILITIES = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16"}
CALLERS = 16


class OpenVinoBackend:
    """Runs the ONNX graphs with tensors bound in place.

    The prompt half, or a network of one graph, has the threads; the spectral head, a thousandth of the work
    that runs beside it, has one.

    Args:
        bundle: of the engine `openvino`.
        device: a CPU, where the tensors are.
        threads: see `npnet_runtime.threads`; of no matter on a GPU or NPU.

    Raises:
        BundleError: a graph was changed, or OpenVINO cannot read it.
        BackendError: OpenVINO has no such device, or no number of threads.
    """

    capture_obstacle = "OpenVINO does not run on CUDA"

    def __init__(self, bundle: EngineBundle, device: torch.device, threads: int | None = None) -> None:
        self.device = device
        manifest = bundle.manifest
        target = target_of(manifest)
        self._graphs = graphs(manifest.config)
        self._compiled: dict[str, Compiled] = {}
        for name, graph in self._graphs.items():
            own = graph_threads(name, threads)
            content = bundle.read(name + SUFFIX)
            try:
                self._compiled[name] = Compiled(content, graph, target, manifest.precision, own)
            except ValueError as error:
                raise BundleError(f"{bundle.path / (name + SUFFIX)}: {error}") from error

    def for_capture(self) -> OpenVinoBackend:
        """See `Backend`."""
        raise BackendError(f"no CUDA graph can hold it: {self.capture_obstacle}; pass cuda_graphs=False")

    def run(self, graph: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See `Backend`."""
        outputs = empty_outputs(self._graphs[graph], inputs)
        try:
            self._compiled[graph].run(inputs, tuple(outputs.values()))
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO could not run {graph} on a batch of {len(inputs[0])}: {error}\n"
                f"if it ran out of memory, call with a smaller batch"
            ) from error
        return tuple(outputs.values())


class Compiled:
    """A graph on a device of OpenVINO, for any number of callers.

    Args:
        content: a serialised ONNX model.
        graph: names of its inputs and outputs, of which the first of each are bound.
        target: device of OpenVINO, such as `CPU` or `GPU.1`.
        precision: of the matrix products.
        threads: on the CPU.

    Raises:
        ValueError: OpenVINO cannot read or compile the model.
        BackendError: there is no such device.
    """

    def __init__(self, content: bytes, graph: Graph, target: str, precision: str, threads: int) -> None:
        import openvino

        self._openvino = openvino
        self._target, self._graph = target, graph
        core = process_core()
        if obstacle := target_obstacle(target, precision, devices()):
            raise BackendError(obstacle)
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "NUM_STREAMS": 1}
        if target == "CPU":
            # Pinned threads would fight over cores with the caller's own, and with other containers'.
            options |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}

        def compiled(shapes: tuple[Shape, ...] | None) -> Any:
            model = core.read_model(content)
            if shapes is not None:
                model.reshape({n: [*shape] for n, shape in zip(graph.inputs, shapes, strict=True)})
            return core.compile_model(model, target, options)

        self._compile = compiled
        self._requests: dict[tuple[Shape, ...] | None, Pool[Any]] = {}
        self._lock = threading.Lock()
        try:
            self._pool(tuple((1, *shape) for shape in graph.inputs.values()))
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot load it: {error}") from error

    def run(self, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        """Compute float32 outputs, contiguous on the CPU, from such inputs.

        Raises:
            RuntimeError: OpenVINO's.
        """
        tensors = [tensor.resolve_neg().contiguous() for tensor in inputs]
        with self._pool(tuple(tuple(tensor.shape) for tensor in tensors)).borrow() as request:
            for name, tensor in zip(self._graph.inputs, tensors, strict=True):
                request.set_tensor(name, self._shared(tensor))
            for name, tensor in zip(self._graph.outputs, outputs, strict=True):
                request.set_tensor(name, self._shared(tensor))
            request.infer()

    def _shared(self, tensor: Tensor) -> Any:
        return self._openvino.Tensor(tensor.numpy(), shared_memory=True)

    def _pool(self, shapes: tuple[Shape, ...]) -> Pool[Any]:
        own = shapes if self._target == "NPU" else None  # which takes one size only
        with self._lock:
            if own not in self._requests:
                make = self._compile(own).create_infer_request
                self._requests[own] = Pool(make, CALLERS, lambda request: None)
            return self._requests[own]


@functools.cache
def process_core() -> Any:
    """The one `openvino.Core` of the process, which is never given up.

    Each core brings a CPU plugin of its own, which gives the calling thread a stack for signal handlers and
    takes it away again in the end. Where two end in another order than that of a stack, the thread is left
    with one that is gone, and dies of the next signal, Ctrl-C included (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


def devices() -> dict[str, tuple[str, ...]]:
    """Devices that OpenVINO has here, and what each says it computes in."""
    core = process_core()
    key = "OPTIMIZATION_CAPABILITIES"
    return {name: tuple(core.get_property(name, key)) for name in core.available_devices}


def target_of(manifest: Manifest) -> str:
    """The device of OpenVINO that a bundle was built for."""
    return str(manifest.build_options.get(TARGET_OPTION, "CPU"))


def target_obstacle(target: str, precision: str, found: Mapping[str, tuple[str, ...]]) -> str | None:
    """Why OpenVINO cannot run an engine on a device; None if it can.

    Args:
        target: device of OpenVINO.
        precision: of the engine.
        found: see `devices`.
    """
    capabilities = found.get(target, found.get(f"{target}.0"))
    if capabilities is None:
        return (
            f"OpenVINO has no device {target} here, only {', '.join(found) or 'none'}; "
            f"install its driver, or build for the CPU, without {TARGET_OPTION}"
        )
    if CAPABILITIES[precision] not in capabilities:
        return (
            f"this {target} does not compute in {precision} (bf16 takes AMX or AVX512-BF16), and emulating "
            f"that is slower than float32; build with --precision fp32"
        )
    return None

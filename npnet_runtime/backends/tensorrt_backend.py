"""The TensorRT back end, for engines of TensorRT and of TensorRT for RTX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.backends.base import empty_outputs
from npnet_runtime.backends.pool import Pool
from npnet_runtime.backends.tensorrt_module import MODULES, SUFFIX, import_tensorrt, new_log
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.errors import BackendError, BundleError
from npnet_runtime.networks.graphs import Graph, graphs

MAX_CONTEXTS = 4  # calls in flight at once; each context holds the activations of a whole batch


class TensorRTBackend:
    """Runs the engines of a bundle on a CUDA device.

    The work is ordered on the caller's current stream and does not block the host, except that a call
    waits for its turn where `MAX_CONTEXTS` others are being queued.

    Args:
        bundle: of the engine `tensorrt` or `tensorrt-rtx`.
        device: where to run.

    Raises:
        BundleError: an engine was changed, cannot be deserialised, or does not fit the manifest.
        BackendError: the module cannot be imported, or there is too little GPU memory.
    """

    capture_obstacle = None

    def __init__(self, bundle: EngineBundle, device: torch.device) -> None:
        self.device = device
        trt = import_tensorrt(bundle.manifest.engine)
        self._log = new_log(trt)
        self._runtime = trt.Runtime(self._log)
        # A version-compatible engine brings its own runtime along; its sha256 is checked like all others.
        self._runtime.engine_host_code_allowed = "--version-compatible" in bundle.manifest.build_options
        self._graphs = graphs(bundle.manifest.config)
        with torch.cuda.device(device):
            self._engines = {name: self._load(trt, bundle, name) for name in self._graphs}

    def for_capture(self) -> _Captured:
        """See `Backend`: with contexts of its own, which no other run changes."""
        return _Captured(self.device, self._graphs, self._engines)

    def run(self, graph: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See `Backend`."""
        outputs = empty_outputs(self._graphs[graph], inputs)
        named = dict(zip(self._graphs[graph].inputs, inputs, strict=True))
        self._engines[graph].run(named, outputs)
        return tuple(outputs.values())

    def _load(self, trt: ModuleType, bundle: EngineBundle, graph: str) -> LoadedEngine:
        name = graph + SUFFIX
        engine = self._runtime.deserialize_cuda_engine(bundle.read(name))
        if engine is None:
            raise BundleError(
                f"{bundle.path / name}: {MODULES[bundle.manifest.engine]} {trt.__version__} cannot load it:\n"
                f"{self._log.tail()}\nwrite it again with: {bundle.rebuild_command()}"
            )
        check_profile(bundle, name, engine, self._graphs[graph])
        return LoadedEngine(trt, engine, self._log, self.device)


def check_profile(bundle: EngineBundle, name: str, engine: Any, graph: Graph) -> None:
    """Whether an engine takes every batch, and every size, that the manifest promises.

    Args:
        bundle: of the engine.
        name: of the engine's file.
        engine: an `ICudaEngine`.
        graph: its inputs.

    Raises:
        BundleError: an input is missing, or its profile is of other shapes or smaller batches.
    """
    present = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    for tensor in graph.inputs:
        least, most = graph.bounds(tensor)
        wanted = (1, *least), (bundle.manifest.max_batch, *most)
        if tensor in present:
            smallest, _, largest = (tuple(found) for found in engine.get_tensor_profile_shape(tensor, 0))
            same = (smallest[1:], largest[1:]) == (least, most)
            if same and smallest[0] <= 1 and largest[0] >= bundle.manifest.max_batch:
                continue
            found = f"{smallest} to {largest}"
        else:
            found = "no such input"
        raise BundleError(
            f"{bundle.path / name}: expected an optimisation profile for {tensor} of {wanted[0]} to "
            f"{wanted[1]}, given {found}; write it again with: {bundle.rebuild_command()}"
        )


@dataclass
class _Context:
    """An execution context, the stream it ran on last, and the end of that run."""

    context: Any
    own_stream: torch.cuda.Stream
    last_stream: torch.cuda.Stream
    done: torch.cuda.Event


class LoadedEngine:
    """An engine and its contexts: one for each call in flight, made when first needed."""

    def __init__(self, trt: ModuleType, engine: Any, log: Any, device: torch.device) -> None:
        self._trt = trt
        self._engine = engine
        self._log = log
        self._device = device
        # One in whose use an error was raised is in an unknown state: it is given up once nothing runs in it.
        self._contexts: Pool[_Context] = Pool(
            self._with_stream, MAX_CONTEXTS, lambda slot: slot.done.synchronize()
        )
        with self._contexts.borrow():  # too little memory is told at start
            pass

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Queue one run on the caller's current stream.

        Raises:
            BackendError: the engine refuses the shapes, or cannot be queued.
        """
        with torch.cuda.device(self._device), self._contexts.borrow() as slot:
            current = torch.cuda.current_stream()
            # On the default stream the library would make the host wait.
            stream = slot.own_stream if current == torch.cuda.default_stream() else current
            if stream != current:
                stream.wait_stream(current)
            if stream != slot.last_stream:
                stream.wait_event(slot.done)  # a context's activations serve one run at a time
            self.queue(slot.context, inputs, outputs, stream, current)
            slot.done.record(stream)
            slot.last_stream = stream
            if stream != current:
                current.wait_stream(stream)

    def queue(
        self,
        context: Any,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        stream: torch.cuda.Stream,
        current: torch.cuda.Stream,
    ) -> None:
        """Queue a run on a stream, with tensors of the current one.

        Raises:
            BackendError: as in `run`.
        """
        tensors = {name: tensor.contiguous() for name, tensor in inputs.items()}
        for name, tensor in tensors.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise self.error(f"{name}: no profile for the shape {tuple(tensor.shape)}")
        for name, tensor in (*tensors.items(), *outputs.items()):
            context.set_tensor_address(name, tensor.data_ptr())
            if stream != current:
                tensor.record_stream(stream)
        if not context.execute_async_v3(stream.cuda_stream):
            raise self.error("the run could not be queued")

    def _with_stream(self) -> _Context:
        own = torch.cuda.Stream(self._device)
        return _Context(self.new_context(), own, own, torch.cuda.Event())

    def new_context(self) -> Any:
        """An execution context.

        Raises:
            BackendError: there is too little memory.
        """
        if hasattr(self._trt, "DynamicShapesKernelSpecializationStrategy"):
            # TensorRT for RTX compiles kernels for a shape while others run, and then switches over, which
            # changes the last bits from one call to the next. Compile first.
            runtime_config = self._engine.create_runtime_config()
            strategies = self._trt.DynamicShapesKernelSpecializationStrategy
            runtime_config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            context = self._engine.create_execution_context(runtime_config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise self.error("no execution context; free GPU memory, or build with a smaller --max-batch")
        return context

    def error(self, what: str) -> BackendError:
        """An error with the end of the library's log."""
        return BackendError(f"{self._trt.__name__}: {what}:\n{self._log.tail()}")


class _Captured:
    """The engines with a context each, for one CUDA graph: no events and no other stream.

    The library asks for a run with the same shapes before a capture, and for one context a graph.
    """

    capture_obstacle = None

    def __init__(
        self, device: torch.device, known: Mapping[str, Graph], engines: Mapping[str, LoadedEngine]
    ) -> None:
        self.device = device
        self._graphs, self._engines = known, engines
        self._contexts: dict[str, Any] = {}  # made by the run before the capture: it allocates memory

    def for_capture(self) -> _Captured:
        """See `Backend`."""
        return _Captured(self.device, self._graphs, self._engines)

    def run(self, graph: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See `Backend`. The current stream must not be the default one.

        Raises:
            BackendError: as in `TensorRTBackend`, or the library cannot be captured in these shapes.
        """
        engine = self._engines[graph]
        first = graph not in self._contexts
        context = self._contexts[graph] = engine.new_context() if first else self._contexts[graph]
        outputs = empty_outputs(self._graphs[graph], inputs)
        named = dict(zip(self._graphs[graph].inputs, inputs, strict=True))
        current = torch.cuda.current_stream()
        engine.queue(context, named, outputs, current, current)
        # TensorRT for RTX only: an engine may need memory of the library's own while it runs
        capturable = getattr(context, "is_stream_capturable", None)
        if first and capturable is not None and not capturable(current.cuda_stream):
            raise engine.error(f"{graph} cannot be captured in a CUDA graph; pass cuda_graphs=False")
        return tuple(outputs.values())

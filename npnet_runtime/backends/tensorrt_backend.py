"""The TensorRT back end, for engines of TensorRT and of TensorRT for RTX."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.backends.base import empty_outputs
from npnet_runtime.backends.tensorrt_module import MODULES, SUFFIX, import_tensorrt, new_log
from npnet_runtime.bundle import EngineBundle
from npnet_runtime.errors import BackendError, BundleError
from npnet_runtime.graphs import graphs

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

    def run(self, graph: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See `Backend`."""
        outputs = empty_outputs(self._graphs[graph], inputs[0])
        named = dict(zip(self._graphs[graph].inputs, inputs, strict=True))
        self._engines[graph].run(named, outputs)
        return tuple(outputs.values())

    def _load(self, trt: ModuleType, bundle: EngineBundle, graph: str) -> _Engine:
        name = graph + SUFFIX
        engine = self._runtime.deserialize_cuda_engine(bundle.read(name))
        if engine is None:
            raise BundleError(
                f"{bundle.path / name}: {MODULES[bundle.manifest.engine]} {trt.__version__} cannot load it:\n"
                f"{self._log.tail()}\nwrite it again with: {bundle.rebuild_command()}"
            )
        check_profile(bundle, name, engine, self._graphs[graph].inputs)
        return _Engine(trt, engine, self._log, self.device)


def check_profile(
    bundle: EngineBundle, name: str, engine: Any, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Whether an engine takes every batch that the manifest promises.

    Args:
        bundle: of the engine.
        name: of the engine's file.
        engine: an `ICudaEngine`.
        shapes: of each input, in order, without the batch.

    Raises:
        BundleError: an input is missing, or its profile is of other shapes or smaller batches.
    """
    present = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    for tensor, shape in shapes.items():
        wanted = (1, *shape), (bundle.manifest.max_batch, *shape)
        if tensor in present:
            smallest, _, largest = (tuple(found) for found in engine.get_tensor_profile_shape(tensor, 0))
            same = smallest[1:] == largest[1:] == shape
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


class _Engine:
    """An engine and its contexts: one for each call in flight, made when first needed."""

    def __init__(self, trt: ModuleType, engine: Any, log: Any, device: torch.device) -> None:
        self._trt = trt
        self._engine = engine
        self._log = log
        self._device = device
        self._free: list[_Context] = []
        self._turns = threading.BoundedSemaphore(MAX_CONTEXTS)
        with self._borrow():  # too little memory is told at start
            pass

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Queue one run on the caller's current stream.

        Raises:
            BackendError: the engine refuses the shapes, or cannot be queued.
        """
        with torch.cuda.device(self._device), self._borrow() as slot:
            current = torch.cuda.current_stream()
            # On the default stream the library would make the host wait.
            stream = slot.own_stream if current == torch.cuda.default_stream() else current
            if stream != current:
                stream.wait_stream(current)
            if stream != slot.last_stream:
                stream.wait_event(slot.done)  # a context's activations serve one run at a time
            tensors = {name: tensor.contiguous() for name, tensor in inputs.items()}
            for name, tensor in tensors.items():
                if not slot.context.set_input_shape(name, tuple(tensor.shape)):
                    raise self._error(f"{name}: no profile for the shape {tuple(tensor.shape)}")
            for name, tensor in (*tensors.items(), *outputs.items()):
                slot.context.set_tensor_address(name, tensor.data_ptr())
                if stream != current:
                    tensor.record_stream(stream)
            if not slot.context.execute_async_v3(stream.cuda_stream):
                raise self._error("the run could not be queued")
            slot.done.record(stream)
            slot.last_stream = stream
            if stream != current:
                current.wait_stream(stream)

    @contextmanager
    def _borrow(self) -> Iterator[_Context]:
        with self._turns:
            try:
                slot = self._free.pop()
            except IndexError:
                slot = self._new_context()
            try:
                yield slot
            except BaseException:
                slot.done.synchronize()  # its state is unknown: it is given up once nothing runs in it
                raise
            self._free.append(slot)

    def _new_context(self) -> _Context:
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
            raise self._error("no execution context; free GPU memory, or build with a smaller --max-batch")
        own = torch.cuda.Stream(self._device)
        return _Context(context, own, own, torch.cuda.Event())

    def _error(self, what: str) -> BackendError:
        return BackendError(f"{self._trt.__name__}: {what}:\n{self._log.tail()}")

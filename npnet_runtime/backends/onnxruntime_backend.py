"""The ONNX Runtime back end: the CPU or the CUDA provider, never one in place of the other."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.backends.base import empty_outputs, graph_threads
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.errors import BackendError, BundleError
from npnet_runtime.networks.graphs import Graph, graphs

SUFFIX = ".onnx"
_FLOAT = 1  # onnx.TensorProto.FLOAT
MOST_SESSIONS = 32
_QUIET = 3  # errors only: the session's warnings are about nodes it places by design


class OnnxRuntimeBackend:
    """Runs the ONNX graphs with tensors bound in place.

    On CUDA the sessions own one stream: it waits for the caller's current stream, and the caller's
    waits for it, so no call blocks the host.

    Args:
        bundle: of the engine `onnxruntime`.
        device: where to run.
        threads: of a CPU; see `npnet_runtime.threads`. The spectral head, a thousandth of the work that runs
            beside the rest, has one.

    Raises:
        BundleError: a graph was changed, or ONNX Runtime cannot read it.
        BackendError: the provider for the device did not load, or no number of threads.
    """

    capture_obstacle = "ONNX Runtime runs on a stream of its own, which waits and allocates as it likes"

    def __init__(self, bundle: EngineBundle, device: torch.device, threads: int | None = None) -> None:
        self.device = device
        self._threads = threads
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # One stream's work is in order only if one thread at a time adds to it.
        self._lock = threading.Lock() if self._stream else nullcontext()
        self._making = threading.Lock()
        self._graphs = graphs(bundle.manifest.config)
        self._bundle = bundle
        # One a graph; on CUDA one for each size that was met, where a graph takes several.
        self._sessions: dict[tuple[str, tuple[tuple[str, int], ...]], Any] = {}
        for name, graph in self._graphs.items():
            self._session_for(
                name, {tensor: torch.empty(1, *shape) for tensor, shape in graph.inputs.items()}
            )

    def for_capture(self) -> OnnxRuntimeBackend:
        """See `Backend`."""
        raise BackendError(f"no CUDA graph can hold it: {self.capture_obstacle}; pass cuda_graphs=False")

    def run(self, graph: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See `Backend`."""
        outputs = empty_outputs(self._graphs[graph], inputs)
        named = dict(zip(self._graphs[graph].inputs, inputs, strict=True))
        try:
            self._run(self._session_for(graph, named), named, outputs)
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise BackendError(
                f"ONNX Runtime could not run {graph} on a batch of {len(inputs[0])}: {error}\n"
                f"if it ran out of memory, call with a smaller batch, or build with a smaller --max-batch"
            ) from error
        return tuple(outputs.values())

    def _session_for(self, name: str, inputs: Mapping[str, Tensor]) -> Any:
        graph = self._graphs[name]
        lengths: tuple[tuple[str, int], ...] = ()
        if self._stream is not None and graph.axes:
            # What computes with shapes would be left on the CPU: known, they are constants.
            shapes = {tensor: tuple(value.shape) for tensor, value in inputs.items()}
            lengths = (("batch", next(iter(shapes.values()))[0]), *graph.lengths(shapes))
        key = (name, lengths)
        with self._making:
            if key not in self._sessions:
                while len(self._sessions) >= MOST_SESSIONS:
                    del self._sessions[next(iter(self._sessions))]
                self._sessions[key] = self._session(self._bundle, name + SUFFIX, graph, dict(lengths))
            return self._sessions[key]

    def _session(self, bundle: EngineBundle, name: str, graph: Graph, lengths: dict[str, int]) -> Any:
        stream = None if self._stream is None else self._stream.cuda_stream
        try:
            threads = graph_threads(name.removesuffix(SUFFIX), self._threads)
            session = new_session(bundle.read(name), self.device, stream, threads, lengths)
        except ValueError as error:
            raise BundleError(f"{bundle.path / name}: ONNX Runtime cannot load it: {error}") from error
        given = [(item.name, item.type) for item in (*session.get_inputs(), *session.get_outputs())]
        if given != [(tensor, "tensor(float)") for tensor in (*graph.inputs, *graph.outputs)]:
            raise BundleError(
                f"{bundle.path / name}: expected float inputs {tuple(graph.inputs)} and outputs "
                f"{tuple(graph.outputs)}, given {given}"
            )
        return session

    def _run(self, session: Any, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        import onnxruntime

        binding = session.io_binding()
        tensors = {name: tensor.resolve_neg().contiguous() for name, tensor in inputs.items()}
        index = self.device.index or 0
        for bind, group in ((binding.bind_input, tensors), (binding.bind_output, outputs)):
            for name, tensor in group.items():
                bind(name, self.device.type, index, _FLOAT, tuple(tensor.shape), tensor.data_ptr())
        with self._lock:
            if self._stream is None:
                session.run_with_iobinding(binding)
                return
            current = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(current)
            run_options = onnxruntime.RunOptions()
            run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            session.run_with_iobinding(binding, run_options)
            current.wait_stream(self._stream)
            for tensor in (*tensors.values(), *outputs.values()):
                tensor.record_stream(self._stream)


def new_session(
    content: bytes,
    device: torch.device,
    stream: int | None = None,
    threads: int | None = None,
    lengths: Mapping[str, int] | None = None,
) -> Any:
    """A session of ONNX Runtime on a device, and nowhere else.

    Args:
        content: a serialised graph.
        device: where to run.
        stream: handle of the CUDA stream to run on; None for one of the library's own.
        threads: of a CPU; None for as many as the library likes.
        lengths: of axes that vary, by name; those left out stay variable.

    Raises:
        ValueError: ONNX Runtime cannot load the graph.
        BackendError: the provider for the device did not load.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = threads or 0
    for name, length in (lengths or {}).items():
        options.add_free_dimension_override_by_name(name, length)
    provider: str | tuple[str, dict[str, Any]] = "CPUExecutionProvider"
    if device.type == "cuda":
        # A node that CUDA cannot run is an error here, not a silent copy to the host.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # By default products of float32 are rounded to TF32, which is off by 2e-3.
        cuda: dict[str, Any] = {"device_id": device.index or 0, "use_tf32": "0"}
        if stream is not None:
            cuda["user_compute_stream"] = str(stream)
        provider = ("CUDAExecutionProvider", cuda)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ValueError(str(error)) from error
    wanted = provider if isinstance(provider, str) else provider[0]
    if session.get_providers()[0] != wanted:
        raise BackendError(
            f"ONNX Runtime did not load {wanted} (it offers {', '.join(session.get_providers())}); "
            f"check that the CUDA and cuDNN libraries match: pip install 'npnet-runtime[gpu]'"
        )
    return session

"""The layers of engines that are made from ONNX graphs: ONNX Runtime, TensorRT, TensorRT for RTX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npnet_export.engines import in_precision
from npnet_export.layers.marked_graphs import Marked, correspond, mark
from npnet_export.layers.modules import LayersOf
from npnet_export.layers.report import Layer, compare_layers
from npnet_export.onnx_graphs import graph_bytes
from npnet_export.request import BuilderOptions, BuildRequest
from npnet_export.tensorrt import build_engine
from npnet_runtime.backends.onnxruntime_backend import SUFFIX, new_session
from npnet_runtime.backends.openvino_backend import Compiled, target_of
from npnet_runtime.backends.tensorrt_backend import LoadedEngine
from npnet_runtime.backends.tensorrt_module import import_tensorrt, new_log
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.errors import BackendError, BundleError
from npnet_runtime.networks.graphs import Graph, graphs
from npnet_runtime.networks.registry import Network
from npnet_runtime.threads import choose_threads

CPU = torch.device("cpu")
Stage = Callable[[str], None]
Named = dict[str, Tensor]


def onnxruntime_layers(bundle: EngineBundle, network: Network, device: torch.device) -> LayersOf:
    """Of an engine of the kind `onnxruntime`: the bundle's own graphs.

    Args:
        bundle: to look into.
        network: float32, on the CPU.
        device: where the engine runs.
    """
    float32 = graph_bytes(network)

    def layers(graph: str, inputs: tuple[Tensor, ...]) -> tuple[Layer, ...]:
        given, expected = mark(bundle.read(graph + SUFFIX)), mark(float32[graph])
        named = dict(zip(graphs(network.config)[graph].inputs, inputs, strict=True))
        try:
            found = run_onnxruntime(given, named, device)
        except ValueError as error:
            raise BundleError(
                f"{bundle.path / (graph + SUFFIX)}: ONNX Runtime cannot run it: {error}"
            ) from error
        return _compare(graph, given, expected, found, run_onnxruntime(expected, named, CPU))

    return layers


def openvino_layers(bundle: EngineBundle, network: Network) -> LayersOf:
    """Of an engine of the kind `openvino`: the bundle's own graphs, in the bundle's precision.

    Args:
        bundle: to look into.
        network: float32, on the CPU.
    """
    float32, manifest = graph_bytes(network), bundle.manifest
    target = target_of(manifest)

    def layers(graph: str, inputs: tuple[Tensor, ...]) -> tuple[Layer, ...]:
        given, expected = mark(bundle.read(graph + SUFFIX)), mark(float32[graph])
        named = dict(zip(graphs(network.config)[graph].inputs, inputs, strict=True))
        reference = run_onnxruntime(expected, named, CPU)
        same = correspond(given, expected, graph)
        shapes = {name: tuple(reference[same[name]].shape) for name in given.nodes if name in same}
        found = {name: torch.empty(shape) for name, shape in shapes.items()}
        marked = Graph(
            graphs(network.config)[graph].inputs,
            {given.outputs[name].name: shape for name, shape in shapes.items()},
        )
        try:
            compiled = Compiled(given.content, marked, target, manifest.precision, choose_threads())
            compiled.run(inputs, tuple(found.values()))
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{bundle.path / (graph + SUFFIX)}: OpenVINO cannot run it: {error}") from error
        return _compare(graph, given, expected, found, reference)

    return layers


def tensorrt_layers(bundle: EngineBundle, network: Network, device: torch.device, stage: Stage) -> LayersOf:
    """Of an engine of TensorRT or TensorRT for RTX, built again: a built engine shows no tensors on the way.

    Args:
        bundle: whose precision, largest batch and options of the builder count; its engines are not read.
        network: float32, on the CPU.
        device: where the engine runs.
        stage: told what happens next.
    """
    manifest = bundle.manifest
    options = BuilderOptions.from_given(manifest.build_options)
    half = in_precision(network, manifest.precision)
    request = BuildRequest(half, Path(), manifest.precision, device, manifest.max_batch, options, stage)
    float32, own = graph_bytes(network), graph_bytes(half)

    def layers(graph: str, inputs: tuple[Tensor, ...]) -> tuple[Layer, ...]:
        given, expected = mark(own[graph]), mark(float32[graph])
        named = dict(zip(graphs(network.config)[graph].inputs, inputs, strict=True))
        reference = run_onnxruntime(expected, named, CPU)
        same = correspond(given, expected, graph)
        shapes = {name: tuple(reference[same[name]].shape) for name in given.nodes if name in same}
        found = run_tensorrt(manifest.engine, graph, given, named, shapes, request)
        return _compare(graph, given, expected, found, reference)

    return layers


def run_onnxruntime(marked: Marked, inputs: Mapping[str, Tensor], device: torch.device) -> Named:
    """Run a marked graph.

    Args:
        marked: the graph.
        inputs: float32, by name.
        device: where to run.

    Raises:
        ValueError: ONNX Runtime cannot load or run the graph.
        BackendError: ONNX Runtime is missing, or its provider for the device.

    Returns:
        The inputs, and every tensor of `marked.nodes`, on the CPU.
    """
    try:
        session = new_session(marked.content, device)
    except ImportError as error:
        raise BackendError(
            "the layers of ONNX graphs are compared in onnxruntime, which is not installed: "
            "pip install 'npnet-runtime[cpu]', or 'npnet-runtime[gpu]' for CUDA"
        ) from error
    feeds = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
    try:
        values = session.run([output.name for output in marked.outputs.values()], feeds)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ValueError(str(error)) from error
    found = {name: torch.from_numpy(value) for name, value in zip(marked.outputs, values, strict=True)}
    return {**inputs, **found}


def run_tensorrt(
    engine: str,
    graph: str,
    marked: Marked,
    inputs: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    request: BuildRequest,
) -> Named:
    """Build a marked graph and run it, in the contexts that run a bundle's engines.

    Args:
        engine: `tensorrt` or `tensorrt-rtx`.
        graph: its name.
        marked: the graph.
        inputs: float32, by name.
        shapes: of every tensor of `marked.nodes`.
        request: what the builder is told, and where to run.

    Raises:
        ExportError: the builder refuses the graph.
        BackendError: the module is missing, or the engine cannot be loaded or run here.
    """
    trt = import_tensorrt(engine)
    log = new_log(trt)
    content = build_engine(trt, log, engine, f"{graph}, every layer an output", marked.content, request)
    with torch.cuda.device(request.device):
        runtime = trt.Runtime(log)
        loaded: Any = runtime.deserialize_cuda_engine(content)
        if loaded is None:
            raise BackendError(
                f"{trt.__name__} {trt.__version__} cannot load {graph}, every layer an output:\n{log.tail()}"
            )
        outputs = {
            name: torch.empty(shape, dtype=marked.outputs[name].dtype, device=request.device)
            for name, shape in shapes.items()
        }
        on_device = {name: tensor.to(request.device) for name, tensor in inputs.items()}
        bound = {marked.outputs[name].name: tensor for name, tensor in outputs.items()}
        LoadedEngine(trt, loaded, log, request.device).run(on_device, bound)
        torch.cuda.synchronize(request.device)
    return {name: tensor.cpu() for name, tensor in outputs.items()}


def _compare(
    graph: str, given: Marked, expected: Marked, found: Named, reference: Named
) -> tuple[Layer, ...]:
    same = correspond(given, expected, graph)
    return compare_layers(
        (node.name or name, given.kind(name), found[name], reference[same[name]])
        for name, node in given.nodes.items()
        if name in same
    )

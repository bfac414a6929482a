"""The ONNX graphs of an engine: traced, stripped of what differs from run to run, checked, saved."""

from __future__ import annotations

import ast
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from npnet_export.errors import ExportError
from npnet_runtime.backends.onnxruntime_backend import SUFFIX
from npnet_runtime.networks.graphs import Graph, graphs
from npnet_runtime.networks.registry import Network

if TYPE_CHECKING:
    import onnx

OPSET = 21
# Constants above this many elements stay as the recipe that makes them (a gather from a small table),
# which every engine evaluates once when it loads. Folding them here would add 3 MB to each bundle.
FOLD_LIMIT = 512
SCOPES = "pkg.torch.onnx.name_scopes"


def write_graphs(network: Network, folder: Path) -> None:
    """Write every graph of the network, with a dynamic batch.

    All inputs and outputs are float32; the precision of the products is that of the network's weights.

    Args:
        network: in eval mode, on the CPU.
        folder: where to.

    Raises:
        ExportError: onnx or onnxscript is missing, or a graph fails ONNX's own check.
    """
    parts = network.parts()
    for name, graph in graphs(network.config).items():
        # a batch of 2, because export specialises 0 and 1
        inputs = {tensor: torch.zeros(2, *shape) for tensor, shape in graph.traced().items()}
        _write(parts[name], graph, inputs, folder / (name + SUFFIX))


def graph_bytes(network: Network) -> dict[str, bytes]:
    """What `write_graphs` writes, by the name of the graph."""
    with tempfile.TemporaryDirectory(prefix="npnet-onnx-") as folder:
        write_graphs(network, Path(folder))
        return {name: (Path(folder) / (name + SUFFIX)).read_bytes() for name in graphs(network.config)}


def dynamic_shapes(graph: Graph, batch: Any) -> dict[str, dict[int, Any]]:
    """What varies of each input of a graph, as `torch.export` takes it.

    Args:
        graph: its inputs.
        batch: the `Dim` of their first axis; None where it does not vary.
    """
    names: dict[str, Any] = {}
    found: dict[str, dict[int, Any]] = {}
    for tensor in graph.inputs:
        found[tensor] = {0: batch} if batch is not None else {}
        for index, axis in graph.axes.get(tensor, {}).items():
            if axis.least == axis.most:
                continue  # fixed, after all
            if axis.name not in names:
                names[axis.name] = torch.export.Dim(axis.name, min=axis.least, max=axis.most)
            length = names[axis.name]
            found[tensor][1 + index] = length if axis.times == 1 else axis.times * length
    return found


def _write(module: nn.Module, graph: Graph, inputs: dict[str, Tensor], path: Path) -> None:
    try:
        import onnx
        from onnxscript import optimizer
    except ImportError as error:
        raise ExportError(f"ONNX export needs {error.name}: pip install 'npnet-runtime[export]'") from error
    with _quiet():
        program = torch.onnx.export(
            module,
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=dynamic_shapes(graph, torch.export.Dim("batch")),
            optimize=False,
            verbose=False,
        )
        if program is None:
            raise ExportError("torch.onnx.export returned no program")
        model = optimizer.optimize(
            program.model_proto, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT
        )
    _strip(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        # such as a convolution of bfloat16, which opset 21 does not know
        raise ExportError(f"{path.name} fails ONNX's check; try another --precision: {error}") from error
    onnx.save(model, path)


def _strip(model: onnx.ModelProto) -> None:
    """Drop stack traces and names of Python objects: they hold this machine's paths. Name nodes by module."""
    from npnet_runtime import __version__

    model.producer_name, model.producer_version = "npnet-export", __version__
    del model.metadata_props[:]
    graph = model.graph
    del graph.metadata_props[:]
    for node in graph.node:
        module = _module(node)
        node.name = f"{module}/{node.name}" if module else node.name
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.doc_string = ""
        del item.metadata_props[:]
    del graph.value_info[:]


def _module(node: onnx.NodeProto) -> str:
    """Path of the module that a node belongs to, as the exporter notes it; empty for the outermost."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(notes.get(SCOPES, "[]"))  # from the outermost module to the node itself
    return str(scopes[-2]) if len(scopes) > 1 else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter says about packages that this network does not use."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")

    def unrelated(record: logging.LogRecord) -> bool:
        return "torchvision" not in record.getMessage()

    logger.addFilter(unrelated)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message=".*will not be used")
            yield
    finally:
        logger.removeFilter(unrelated)

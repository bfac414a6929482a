"""ONNX graphs that give every tensor on the way as an output, and which tensors of two of them correspond.

Why not Polygraphy, which can mark outputs too: its loaders take the module of TensorRT from an environment
variable that is read once, on import, its runner copies through a CUDA wrapper of its own, and its comparator
judges by element-wise tolerances. A graph that is marked here goes through the builder, the sessions and the
contexts that the engine itself goes through, and its tensors are compared by the rule of `layers.report`.

A mark keeps an engine from fusing across it: what only a fusion does wrong cannot be seen this way. It shows
float16 as float16 where ONNX Runtime, on a CPU, goes on in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import onnx
import torch

from npnet_export.errors import ExportError

_CAST = "Cast"
_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
}
_WITHOUT_NUMPY = onnx.TensorProto.BFLOAT16
_MARK = ":float32"


class Output(NamedTuple):
    """An output of a marked graph."""

    name: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Marked:
    """A graph whose tensors are outputs.

    Args:
        content: the serialised model; its outputs are those it had, then the marks.
        inputs: names of the graph's inputs.
        nodes: those that give a floating-point tensor which depends on an input, in order of computation:
            name of the tensor -> node.
        outputs: name of the tensor -> the output that gives it.
    """

    content: bytes
    inputs: tuple[str, ...]
    nodes: dict[str, onnx.NodeProto]
    outputs: dict[str, Output]

    def kind(self, name: str) -> str:
        """What gives a tensor of `nodes`: its operator, and of a cast also what was cast."""
        node = self.nodes[name]
        source = node.input[0]
        if node.op_type != _CAST or source not in self.nodes:
            return node.op_type
        return f"{_CAST} of {self.kind(source)}"


def mark(content: bytes) -> Marked:
    """Make every floating-point tensor that depends on an input an output; bfloat16 by way of float32.

    Args:
        content: a serialised model, of one domain and without subgraphs, as `onnx_graphs` writes it.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    types = _types(model)
    given = {value.name for value in graph.output}
    variable = {value.name for value in graph.input}
    nodes: dict[str, onnx.NodeProto] = {}
    outputs: dict[str, Output] = {}
    for node in list(graph.node):
        if not variable.intersection(node.input):
            continue
        variable.update(node.output)
        for name in node.output:
            kind = types.get(name, 0)
            output = name
            if kind == _WITHOUT_NUMPY:
                output, kind = name + _MARK, onnx.TensorProto.FLOAT
                graph.node.append(onnx.helper.make_node(_CAST, [name], [output], to=kind))
            if kind not in _DTYPES:
                continue
            nodes[name], outputs[name] = node, Output(output, _DTYPES[kind])
            if output not in given:
                graph.output.append(onnx.helper.make_tensor_value_info(output, kind, None))
    inputs = tuple(value.name for value in graph.input)
    return Marked(model.SerializeToString(), inputs, nodes, outputs)


def correspond(given: Marked, expected: Marked, graph: str) -> dict[str, str]:
    """The tensor of the float32 graph behind each tensor of an engine's graph.

    Both come from one network, so that without casts their operators are the same, in the same order. A cast
    corresponds to what its input does: in float32 it does nothing.

    Args:
        given: the engine's graph.
        expected: the float32 graph.
        graph: its name, for errors.

    Raises:
        ExportError: the operators differ.

    Returns:
        Name in the engine's graph -> name in the other; the inputs among them.
    """
    theirs, ours = (_without_casts(marked) for marked in (expected, given))
    kinds = [
        [marked.nodes[name].op_type for name in names]
        for marked, names in ((expected, theirs), (given, ours))
    ]
    if kinds[0] != kinds[1]:
        at = next(
            (i for i, (a, b) in enumerate(zip(*kinds, strict=False)) if a != b), min(len(theirs), len(ours))
        )
        found = [
            f"{names[at]} ({kind[at]})" if at < len(names) else "its end"
            for names, kind in zip((theirs, ours), kinds, strict=True)
        ]
        raise ExportError(
            f"{graph}: expected the operators of the float32 network, given others: {found[1]} in place of "
            f"{found[0]}, behind {at} that are the same; the bundle was changed, or exported by other "
            f"versions of torch or onnxscript: export it again here, and compare that"
        )
    same = dict(zip((*given.inputs, *ours), (*expected.inputs, *theirs), strict=True))
    for name, node in given.nodes.items():
        if name not in same and node.input[0] in same:
            same[name] = same[node.input[0]]
    return same


def _without_casts(marked: Marked) -> list[str]:
    return [name for name, node in marked.nodes.items() if node.op_type != _CAST]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Type of every tensor whose type is known, or follows from what made it."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        # onnx has no inference for GroupNormalization, and none for what follows it
        cast = next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)
        given = types.get(node.input[0]) if node.input else None
        for name in node.output:
            found = types.get(name) or (cast if node.op_type == _CAST else given)
            if found is not None:
                types[name] = found
    return types

"""ONNX graphs that give every tensor on the way as an output, and which tensors of two of them correspond.

Why not Polygraphy, which can mark outputs too: its loaders take the module of TensorRT from an environment
variable that is read once, on import, its runner copies through a CUDA wrapper of its own, and its comparator
judges by element-wise tolerances. A graph that is marked here goes through the builder, the sessions and the
contexts that the engine itself goes through, and its tensors are compared by the rule of `layers.report`.

A mark keeps an engine from fusing across it: what only a fusion does wrong cannot be seen this way.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from npnet_export.errors import ExportError

_CAST = "Cast"
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_MARK = ":layer"


@dataclass(frozen=True)
class Marked:
    """A graph whose tensors are outputs.

    Args:
        content: the serialised model; its outputs are those it had, then the marks, all float32.
        nodes: those that give a floating-point tensor which depends on an input, in order of computation:
            name of the tensor -> node.
        outputs: name of the tensor -> name of the output that gives it in float32.
    """

    content: bytes
    nodes: dict[str, onnx.NodeProto]
    outputs: dict[str, str]


def mark(content: bytes) -> Marked:
    """Make every floating-point tensor that depends on an input an output, in float32.

    Args:
        content: a serialised model, of one domain and without subgraphs, as `onnx_graphs` writes it.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    types = _types(model)
    given = {value.name for value in graph.output}
    variable = {value.name for value in graph.input}
    nodes: dict[str, onnx.NodeProto] = {}
    outputs: dict[str, str] = {}
    for node in list(graph.node):
        if not variable.intersection(node.input):
            continue
        variable.update(node.output)
        for name in node.output:
            if types.get(name) not in _FLOATS:
                continue
            nodes[name] = node
            outputs[name] = name if name in given else name + _MARK
            if name not in given:
                # By a cast, also from float32: every engine then gives one dtype, and no name is taken away.
                graph.node.append(
                    onnx.helper.make_node(_CAST, [name], [name + _MARK], to=onnx.TensorProto.FLOAT)
                )
                graph.output.append(
                    onnx.helper.make_tensor_value_info(name + _MARK, onnx.TensorProto.FLOAT, None)
                )
    return Marked(model.SerializeToString(), nodes, outputs)


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
    same = dict(zip(ours, theirs, strict=True))
    for name, node in given.nodes.items():
        if name not in same and node.input[0] in same:
            same[name] = same[node.input[0]]
    return same


def _without_casts(marked: Marked) -> list[str]:
    return [name for name, node in marked.nodes.items() if node.op_type != _CAST]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}

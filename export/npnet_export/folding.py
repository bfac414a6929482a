"""Constant folding of ONNX graphs by Polygraphy's surgeon, where it leaves fewer nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from npnet_runtime.errors import BackendError

if TYPE_CHECKING:
    import onnx

INSTALL = "pip install 'npnet-runtime[tensorrt]', and 'npnet-runtime[cpu]' or 'npnet-runtime[gpu]'"


def require_polygraphy() -> None:
    """Raise unless Polygraphy, and ONNX Runtime by which it evaluates constants, can be imported.

    Raises:
        BackendError: a module is missing.
    """
    for module in ("polygraphy", "onnx_graphsurgeon", "onnxruntime"):
        try:
            __import__(module)
        except ImportError as error:
            raise BackendError(
                f"graphs are folded and compared by Polygraphy, which needs {module}; it cannot be imported "
                f"({error}): {INSTALL}"
            ) from error


def fold(content: bytes) -> bytes:
    """Evaluate what depends on weights only, and drop what nothing reads; as it was if that gains no node.

    Shapes that depend on the batch stay; the file may grow by the tables that were gathered from weights.

    Args:
        content: a serialised model.

    Raises:
        BackendError: Polygraphy is missing.
    """
    require_polygraphy()
    import onnx
    import onnx_graphsurgeon
    from polygraphy.backend.onnx import fold_constants
    from polygraphy.logger import G_LOGGER

    model = onnx.load_from_string(content)
    before = len(model.graph.node)
    with G_LOGGER.verbosity(G_LOGGER.ERROR):
        folded = fold_constants(model)
    graph = onnx_graphsurgeon.import_onnx(folded).cleanup().toposort()
    result: onnx.ModelProto = onnx_graphsurgeon.export_onnx(graph)
    if len(result.graph.node) >= before:
        return content
    onnx.checker.check_model(result, full_check=True)
    return result.SerializeToString()

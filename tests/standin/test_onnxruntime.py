"""ONNX Runtime's CUDA provider takes every node of every graph: sessions refuse what would run on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from npnet_export import ExportSettings, export
from npnet_export.weights import WeightsRequest, get_model
from npnet_runtime.backends.onnxruntime_backend import OnnxRuntimeBackend, new_session
from support.networks import ANY_SIZE

pytest.importorskip("onnxruntime")
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("model", ["sdxl", "shapes-npnet", "shapes"])
def test_every_node_runs_on_the_device(model: str, precision: str, tmp_path: Path) -> None:
    if (model, precision) == ("shapes", "bf16"):
        pytest.skip("ONNX has no convolution of bfloat16 at this opset, and the export says so")
    seed = 0 if model == "sdxl" else None
    settings = ExportSettings(
        WeightsRequest(get_model(model), None, seed), tmp_path / "b", model, "onnxruntime", precision,
        max_batch=4, device="cuda", verify=False,
    )  # fmt: skip
    OnnxRuntimeBackend(export(settings), CUDA)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_any_size(precision: str, tmp_path: Path) -> None:
    """A session for each size, its shapes constants: computing with them would be left to the CPU."""
    weights = WeightsRequest(None, random_seed=0, shapes=ANY_SIZE)
    settings = ExportSettings(
        weights, tmp_path / "b", "any", "onnxruntime", precision, max_batch=4, device="cuda", verify=False
    )
    backend = OnnxRuntimeBackend(export(settings), CUDA)
    shapes = backend._graphs["network"].inputs
    for rows, tokens, places in ((1, 7, (3, 3)), (2, 40, (8, 1))):
        sizes = {
            "noise": (16, 4 * places[0], 4 * places[1]),
            "prompt_embeds": (tokens, 24),
            "mask": (tokens,),
            "positions": (20, *places),
        }
        inputs = {name: torch.zeros(rows, *sizes.get(name, shape)) for name, shape in shapes.items()}
        backend._session_for("network", inputs)
    assert len(backend._sessions) == 2


def test_a_node_on_the_cpu_is_refused() -> None:
    """Else the test above could not fail."""
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("NonZero", ["x"], ["i"])
    size = helper.make_node("Shape", ["i"], ["s"])
    concat = helper.make_node("SequenceConstruct", ["s"], ["q"])
    last = helper.make_node("SequenceLength", ["q"], ["y"])
    graph = helper.make_graph(
        [node, size, concat, last],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10  # of that opset
    onnx.checker.check_model(model)
    with pytest.raises(ValueError, match="fallback"):
        new_session(model.SerializeToString(), CUDA)

"""Folding by Polygraphy leaves fewer nodes and the same results, or the graph as it was."""

from __future__ import annotations

import sys

import onnx
import onnxruntime
import pytest
import torch

from npnet_export.folding import fold
from npnet_export.onnx_graphs import graph_bytes
from npnet_runtime import NPNet
from npnet_runtime.errors import BackendError
from npnet_runtime.networks.graphs import graphs


@pytest.fixture(scope="module")
def contents(small_network: NPNet) -> dict[str, bytes]:
    return graph_bytes(small_network)


def nodes(content: bytes) -> int:
    return len(onnx.load_from_string(content).graph.node)


def run(content: bytes, feeds: dict) -> list:
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize("batch", [1, 3])
def test_fewer_nodes_and_the_same_results(
    contents: dict[str, bytes], small_network: NPNet, batch: int
) -> None:
    content = contents["prompt_half"]
    folded = fold(content)
    assert nodes(folded) < nodes(content)
    shapes = graphs(small_network.config)["prompt_half"].inputs
    feeds = {name: torch.randn(batch, *shape).numpy() for name, shape in shapes.items()}
    for given, expected in zip(run(folded, feeds), run(content, feeds), strict=True):
        torch.testing.assert_close(torch.from_numpy(given), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_what_is_folded_stays_as_it_is(contents: dict[str, bytes]) -> None:
    once = fold(contents["prompt_half"])
    assert fold(once) == once


@pytest.mark.parametrize("module", ["polygraphy", "onnx_graphsurgeon", "onnxruntime"])
def test_says_what_is_missing(
    module: str, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=rf"needs {module}.*pip install 'npnet-runtime\[tensorrt\]'"):
        fold(contents["prompt_half"])

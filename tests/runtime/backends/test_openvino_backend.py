"""OpenVINO: what it computes in, where, and what it says otherwise."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from npnet_export import ExportSettings, export
from npnet_export.errors import ExportError
from npnet_export.request import BuilderOptions
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.backends import Machine, select
from npnet_runtime.backends.openvino_backend import Compiled, devices, target_obstacle
from npnet_runtime.errors import BackendError, BundleError
from npnet_runtime.networks.graphs import graphs
from support.networks import SMALL, noise_and_prompts

CPU = torch.device("cpu")
AMX = {"CPU": ("FP32", "BF16", "FP16")}
OLD = {"CPU": ("FP32",)}
Settings = Callable[..., ExportSettings]


@pytest.mark.parametrize(
    ("target", "precision", "found", "said"),
    [
        ("CPU", "fp32", OLD, None),
        ("CPU", "bf16", AMX, None),
        ("CPU", "bf16", OLD, "does not compute in bf16.*--precision fp32"),
        ("CPU", "fp16", OLD, "does not compute in fp16"),
        ("GPU", "fp16", AMX, "no device GPU here, only CPU.*without --openvino-device"),
        ("GPU", "fp16", {**AMX, "GPU.0": ("FP32", "FP16")}, None),
        ("GPU.1", "fp16", {**AMX, "GPU.0": ("FP32", "FP16")}, "no device GPU.1 here, only CPU, GPU.0"),
    ],
)
def test_obstacles(target: str, precision: str, found: dict, said: str | None) -> None:
    obstacle = target_obstacle(target, precision, found)
    if said is None:
        assert obstacle is None
    else:
        with pytest.raises(BackendError, match=said):
            raise BackendError(obstacle)


def test_selection(small_bundles: dict[str, EngineBundle]) -> None:
    manifest = replace(small_bundles["openvino"].manifest, precision="bf16")

    def verdict(machine: Machine, device: torch.device = CPU) -> str:
        (own,) = (c for c in select(manifest, machine, device) if c.backend == "openvino")
        return "" if own.accepted else own.reason

    plain = Machine({"openvino": "2026.4.1"}, openvino_devices=AMX)
    assert verdict(plain) == ""
    assert "bf16" in verdict(replace(plain, openvino_devices=OLD))
    assert "pip install 'npnet-runtime[openvino]'" in verdict(Machine())
    assert "bound to cpu" in verdict(replace(plain, compute_capability=("9.0",)), torch.device("cuda", 0))


def test_callers_at_once(small_bundles: dict[str, EngineBundle]) -> None:
    golden = GoldenNoise(small_bundles["openvino"], device="cpu")
    inputs = [noise_and_prompts(SMALL, 1 + seed % 3, seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda pair: golden(*pair), inputs))
    for pair, given in zip(inputs, together, strict=True):
        torch.testing.assert_close(given, golden(*pair), atol=1e-5, rtol=0)


SIGNALLED = """
import gc, os, signal, sys
from npnet_runtime import GoldenNoise

first, second = GoldenNoise(sys.argv[1]), GoldenNoise(sys.argv[1])
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_after_engines_are_gone(small_bundles: dict[str, EngineBundle]) -> None:
    """The stack for handlers that a plugin leaves behind: the process would die of it."""
    command = [sys.executable, "-c", SIGNALLED, str(small_bundles["openvino"].path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr


def test_precision(tmp_path: Path, export_small: Settings, small_bundles: dict[str, EngineBundle]) -> None:
    if "BF16" not in devices()["CPU"]:
        with pytest.raises(ExportError, match="does not compute in bf16"):
            export(export_small(tmp_path / "b", engine="openvino", precision="bf16"))
        return
    bundle = export(export_small(tmp_path / "b", engine="openvino", precision="bf16"))
    noise, prompts = noise_and_prompts(SMALL, 2)
    half, full = (GoldenNoise(b, device="cpu")(noise, prompts) for b in (bundle, small_bundles["openvino"]))
    error = (half - full).abs().max()
    assert 1e-5 < error < 0.1


def test_another_device(tmp_path: Path, export_small: Settings) -> None:
    for name, said in (
        ("GPU.7", "no device GPU.7 here"),
        ("TPU", "--openvino-device: expected CPU, GPU, NPU"),
    ):
        options = BuilderOptions(openvino_device=name)
        with pytest.raises(ExportError, match=said):
            export(export_small(tmp_path / "b", engine="openvino", options=options))
    elsewhere = export(
        export_small(
            tmp_path / "b", engine="openvino", options=BuilderOptions(openvino_device="NPU"), verify=False
        )
    )
    assert "--openvino-device NPU" in elsewhere.rebuild_command()
    with pytest.raises(BackendError, match="OpenVINO has no device NPU here"):
        GoldenNoise(elsewhere, device="cpu")


def test_one_size_at_a_time(small_bundles: dict[str, EngineBundle], monkeypatch: pytest.MonkeyPatch) -> None:
    """As an NPU takes them: a model for each size of batch."""
    import openvino

    bundle, graph = small_bundles["openvino"], graphs(SMALL)["prompt_half"]
    reference = GoldenNoise(bundle, device="cpu")._pass
    sizes: list[int] = []
    original = openvino.Core.compile_model

    def compile_on_the_cpu(core: object, model: openvino.Model, target: str, options: dict) -> object:
        assert target == "NPU"
        assert set(options) == {"INFERENCE_PRECISION_HINT", "NUM_STREAMS"}
        sizes.append(model.inputs[0].get_shape()[0])
        return original(core, model, "CPU", options)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_on_the_cpu)
    monkeypatch.setattr("npnet_runtime.backends.openvino_backend.devices", lambda: {"NPU": ("FP16", "FP32")})
    on_npu = Compiled(bundle.read("prompt_half.onnx"), graph, "NPU", "fp32", 1)
    for batch in (1, 2, 1, 3):
        inputs = noise_and_prompts(SMALL, batch)
        outputs = tuple(torch.full((batch, *shape), torch.nan) for shape in graph.outputs.values())
        on_npu.run(inputs, outputs)
        expected = reference.with_prompt(*inputs)
        for given, wanted in zip(outputs, expected, strict=True):
            torch.testing.assert_close(given, wanted, atol=1e-5, rtol=0)
    assert sizes == [1, 2, 3]


def test_no_graph_of_onnx(small_bundles: dict[str, EngineBundle], tmp_path: Path) -> None:
    path = Path(shutil.copytree(small_bundles["openvino"].path, tmp_path / "b"))
    content = b"no graph"
    (path / "prompt_half.onnx").write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["prompt_half.onnx"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="prompt_half.onnx: OpenVINO cannot load it"):
        GoldenNoise(path, device="cpu")

"""`npnet-export repro`: a folder that Polygraphy alone can run, and that finds a broken engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from npnet_export import ExportError, ExportSettings, export
from npnet_export.cli import main
from npnet_export.repro import SCRIPT, write_repro
from npnet_export.verification import reference_network
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.weights import checkpoint
from support.networks import SMALL_ATTENTION

GRAPHS = ("prompt_half", "spectral_head")


@pytest.fixture(scope="module")
def folder(small_bundles: dict[str, EngineBundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("repro") / "folder"
    assert main(["repro", str(small_bundles["onnxruntime"].path), "--output", str(output), "--quiet"]) == 0
    return output


def compare(folder: Path, word: str) -> subprocess.CompletedProcess[str]:
    """Run the script from elsewhere, without the paths of this project."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": programs, "PYTHONPATH": ""}
    command = [str(folder / SCRIPT), word]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")


def test_holds_all_that_is_needed(folder: Path) -> None:
    names = {f"{graph}.{kind}" for graph in GRAPHS for kind in ("onnx", "inputs.json", "expected.json")}
    assert {path.name for path in folder.iterdir()} == names | {SCRIPT, "README.md"}
    for path in (folder / SCRIPT, folder / "README.md"):
        text = path.read_text()
        assert str(Path.cwd()) not in text
        assert "$$" not in text
        assert "npnet_" not in text
    assert (folder / SCRIPT).stat().st_mode & 0o111
    subprocess.run(["sh", "-n", str(folder / SCRIPT)], check=True)


def test_onnxruntime_agrees(folder: Path) -> None:
    done = compare(folder, "onnxruntime")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") >= len(GRAPHS)
    decibels = [float(value) for value in re.findall(r"(?i)\bsnr\b[^\d\n]*([\d.]+)", done.stdout)]
    assert decibels
    assert max(decibels) > 90  # of outputs; 80 is the threshold


@pytest.mark.parametrize("graph", GRAPHS)
def test_finds_a_broken_graph(folder: Path, graph: str, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    model = onnx.load(broken / f"{graph}.onnx")
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype.kind == "f" and values.size > 16:
            weight.CopyFrom(numpy_helper.from_array(1.01 * values, weight.name))
    onnx.save(model, broken / f"{graph}.onnx")
    done = compare(broken, "onnxruntime")
    assert done.returncode == 1
    assert "FAILED" in done.stdout


def test_usage(folder: Path) -> None:
    assert compare(folder, "").returncode == 2
    assert "onnxruntime|tensorrt|tensorrt-rtx" in compare(folder, "nothing").stderr
    assert "float32 already" in compare(folder, "precision").stderr
    assert "GRAPH" in compare(folder, "reduce").stderr


def test_half_precision_has_float32_beside_it(small_checkpoint: Path, tmp_path: Path) -> None:
    """Of an engine that is no ONNX graph: exported in its precision."""
    weights = WeightsRequest(None, str(small_checkpoint))
    bundle = export(ExportSettings(weights, tmp_path / "half", "own", "torch", "fp16", device="cpu"))
    output = tmp_path / "repro"
    assert main(["repro", str(bundle.path), "--output", str(output), "--samples", "1", "--quiet"]) == 0
    types = {
        suffix: {tensor.data_type for tensor in onnx.load(output / f"prompt_half{suffix}").graph.initializer}
        for suffix in (".onnx", ".float32.onnx")
    }
    assert onnx.TensorProto.FLOAT16 in types[".onnx"]
    assert onnx.TensorProto.FLOAT16 not in types[".float32.onnx"]
    done = compare(output, "onnxruntime")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prompt_half.float32.onnx" not in done.stdout
    assert '.float32.onnx" --fp16 --mode bisect' in (output / SCRIPT).read_text()


def test_prompt_attention(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "weights", random_state(SMALL_ATTENTION, 0), SMALL_ATTENTION)
    weights = WeightsRequest(None, str(tmp_path / "weights"))
    export(ExportSettings(weights, tmp_path / "bundle", "own", "torch", device="cpu"))
    assert main(["repro", str(tmp_path / "bundle"), "--output", str(tmp_path / "repro"), "--quiet"]) == 0
    assert (tmp_path / "repro" / "network.onnx").exists()
    done = compare(tmp_path / "repro", "onnxruntime")
    assert done.returncode == 0, done.stdout + done.stderr


def test_keeps_what_is_there(
    folder: Path, small_bundles: dict[str, EngineBundle], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(small_bundles["onnxruntime"].path)
    before = (folder / "README.md").stat().st_mtime_ns
    assert main(["repro", path, "--output", str(folder), "--quiet"]) == 1
    assert "--force" in capsys.readouterr().err
    assert (folder / "README.md").stat().st_mtime_ns == before
    assert main(["repro", path, "--output", str(folder), "--quiet", "--force"]) == 0
    assert (folder / "README.md").stat().st_mtime_ns > before


def test_other_weights_are_refused(
    small_bundles: dict[str, EngineBundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["repro", str(small_bundles["torch"].path), "--random-weights", "5"]
    assert main([*arguments, "--output", str(tmp_path / "repro"), "--quiet"]) == 1
    assert "expected the weights it was made from" in capsys.readouterr().err
    assert not (tmp_path / "repro").exists()


def test_a_folder_that_cannot_be_written(small_bundles: dict[str, EngineBundle], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bundle = small_bundles["torch"]
    with pytest.raises(ExportError, match="cannot be written"):
        write_repro(bundle, reference_network(bundle, None, None), tmp_path / "file" / "repro")

"""What an export needs is looked for before any weights are fetched."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from npnet_export import ExportSettings, needs
from npnet_export.build import check
from npnet_export.choice import choose_engine
from npnet_export.cli import main
from npnet_export.engines import ENGINES
from npnet_export.errors import ExportError
from npnet_export.needs import BUILDS_WITH, check_needs
from npnet_export.weights import WeightsRequest
from npnet_runtime.weights.models import MODELS

THERE = {
    "torch": "2.13.0",
    "onnx": "1.23.2",
    "onnxscript": "0.7.2",
    "onnxruntime": "1.32.0",
    "openvino": "2026.4.1",
    "huggingface_hub": "1.2.0",
}
ALL = dict.fromkeys(("openvino", "onnxruntime", "aoti"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = dict(THERE)
    monkeypatch.setattr(needs, "installed_version", found.get)
    return found


def test_every_engine_is_known() -> None:
    assert set(BUILDS_WITH) == set(ENGINES)


def test_all_is_there(installed: dict[str, str]) -> None:
    for engine in ENGINES:
        check_needs(engine, verify=True, downloads=True)


@pytest.mark.parametrize(
    ("engine", "package", "version", "said"),
    [
        (
            "onnxruntime",
            "onnx",
            None,
            r"onnx >=1.18 \(not installed\): pip install 'npnet-runtime\[export\]'",
        ),
        ("onnxruntime", "onnxruntime", None, r"npnet-runtime\[cpu\]' \(or \[gpu\], for CUDA\)"),
        ("openvino", "openvino", "2024.6", r"openvino >=2026.1 \(2024.6\).*npnet-runtime\[openvino\]"),
        ("openvino", "torch", "2.9.1", r"torch >=2.11 \(2.9.1\): pip install 'torch>=2.11'"),
        ("aoti", "torch", "2.6.0", "torch >=2.9"),
        ("torch", "huggingface_hub", None, r"huggingface_hub .*npnet-runtime\[export\]"),
    ],
)
def test_missing(
    engine: str, package: str, version: str | None, said: str, installed: dict[str, str], tmp_path: Path
) -> None:
    del installed[package]
    if version:
        installed[package] = version
    settings = ExportSettings(
        WeightsRequest(MODELS["sdxl"]), tmp_path / "sdxl", "sdxl", engine=engine, device="cpu"
    )
    with pytest.raises(ExportError, match=said):
        check(settings)


def test_what_is_not_used_is_not_needed(installed: dict[str, str]) -> None:
    installed.clear()
    check_needs("torch", verify=True, downloads=False)
    installed.update(torch="2.13.0", onnx="1.23", onnxscript="0.7")
    check_needs("onnxruntime", verify=False, downloads=False)


def test_several_at_once(installed: dict[str, str]) -> None:
    installed.clear()
    with pytest.raises(ExportError) as caught:
        check_needs("onnxruntime", verify=True, downloads=True)
    for word in ("torch >=2.11", "onnx >=1.18", "onnxscript", "onnxruntime", "huggingface_hub"):
        assert word in str(caught.value)
    assert str(caught.value).count("npnet-runtime[export]") == 1


def test_compiler(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/with blank")
    with pytest.raises(ExportError, match="TMPDIR.*'/tmp/with blank'; set TMPDIR to a plainer path"):
        check_needs("aoti", verify=True, downloads=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ExportError, match="needs a C.. compiler.*set CXX"):
        check_needs("aoti", verify=True, downloads=False)


@pytest.mark.parametrize(
    ("device", "precision", "lacking", "facts", "chosen"),
    [
        ("cuda", None, {}, {"intel": True, "bfloat16": True}, ("torch", "fp32")),
        ("cuda", "fp16", {}, {}, ("torch", "fp16")),
        ("cpu", None, {}, {"intel": True, "bfloat16": True}, ("openvino", "bf16")),
        ("cpu", "fp32", {}, {"intel": True, "bfloat16": True}, ("openvino", "fp32")),
        ("cpu", None, {}, {"intel": True}, ("openvino", "fp32")),
        ("cpu", None, {}, {"bfloat16": True}, ("openvino", "bf16")),
        ("cpu", None, {}, {}, ("onnxruntime", "fp32")),
        ("cpu", "bf16", {}, {}, ("torch", "bf16")),
        ("cpu", None, {"openvino": "not installed"}, {"intel": True}, ("onnxruntime", "fp32")),
        ("cpu", None, {"openvino": "x", "onnxruntime": "x"}, {"intel": True}, ("aoti", "fp32")),
        ("cpu", None, dict.fromkeys(ALL, "x"), {}, ("torch", "fp32")),
    ],
)
def test_choice(
    device: str, precision: str | None, lacking: dict, facts: dict, chosen: tuple[str, str]
) -> None:
    choice = choose_engine(device, precision, ALL | lacking, **facts)
    assert (choice.engine, choice.precision) == chosen
    for name, why in lacking.items():
        assert f"no {name} ({why})" in choice.reason or name == "aoti" or device == "cuda"


def test_auto(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--model", "shapes", "--engine", "auto", "--device", "cpu", "--output", str(tmp_path / "b")]
    assert main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("--engine auto: ")
    assert main(arguments) == 0
    assert "--engine auto: " in capsys.readouterr().err

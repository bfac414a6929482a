"""The command `npnet-export`, as a user meets it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from npnet_export.cli import main
from npnet_export.engines import ENGINES
from npnet_export.parity import TOLERANCES
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.weights.models import MODELS
from support.networks import SMALL, noise_and_prompts


@pytest.fixture
def small(small_checkpoint: Path) -> list[str]:
    return ["--weights", str(small_checkpoint), "--engine", "torch", "--device", "cpu"]


def test_exports(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*small, "--output", str(tmp_path / "bundle"), "--max-batch", "2"]) == 0
    golden = GoldenNoise(tmp_path / "bundle", device="cpu")
    golden(*noise_and_prompts(SMALL, 3))
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"\[ *\d+\.\d s\] ", line) for line in lines)
    assert any("comparing with float32 PyTorch" in line for line in lines)
    assert any("golden: max_abs" in line for line in lines)


def test_default_output_is_named_after_the_weights(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*small, "--quiet"]) == 0
    assert EngineBundle.open(tmp_path / "engines" / "small").manifest.model == "small"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("signs", ["canonical", "as-is"])
def test_signs(small: list[str], tmp_path: Path, signs: str) -> None:
    assert main([*small, "--output", str(tmp_path / "b"), "--signs", signs, "--quiet"]) == 0
    assert EngineBundle.open(tmp_path / "b").manifest.signs.startswith(signs)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name, spec in MODELS.items():
        assert name in printed
        for source in spec.sources:
            assert f"{source.repository}:{source.filename}" in printed
    assert "onnxruntime" in printed


def test_help_and_document_say_which_engine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    advice = capsys.readouterr().out.partition("which engine:")[2]
    document = Path(__file__).parents[2] / "docs" / "engines.md"
    table = document.read_text().partition("## Which engine?")[2]
    for text in (advice, table.partition("## An engine")[0]):
        for said in (*ENGINES, "CPU", "GeForce", "7.5 to 8.9 and 12.x", "H200", "--no-verify", "measured"):
            assert said in text


def test_help_says_every_status(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["verify", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "130 interrupted" in " ".join(capsys.readouterr().out.split())


def test_dry_run_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "sdxl", "--output", str(tmp_path / "sdxl"), "--dry-run", "--precision", "fp16"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Klayand/GoldenNoiseModel:sdxl.pth" in printed
    assert "about 61 MB" in printed
    assert not list(tmp_path.iterdir())


def test_dry_run_knows_the_size_of_any_checkpoint(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*small, "--output", str(tmp_path / "b"), "--dry-run"]) == 0
    assert "about 0 MB" in capsys.readouterr().out


def test_rebuild_command_rebuilds(small: list[str], tmp_path: Path) -> None:
    output = tmp_path / "with space"
    options = ["--max-batch", "2", "--signs", "as-is", "--precision", "bf16"]
    assert main([*small, "--output", str(output), "--quiet", *options]) == 0
    before = EngineBundle.open(output)
    program, *arguments = shlex.split(before.rebuild_command())
    assert program == "npnet-export"
    assert main([*arguments, "--device", "cpu", "--quiet"]) == 0
    assert EngineBundle.open(output) == before


def test_dry_run_finds_what_would_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["--model", "sdxl", "--output", str(tmp_path / "file"), "--dry-run"]) == 1
    assert "no engine bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "--model is required"),
        (["--model", "flux"], 1, "unknown model 'flux': expected one of sdxl"),
        (["--model", "sdxl", "--weights", "a", "--random-weights", "0"], 2, "not allowed with"),
        (["--model", "sdxl", "--random-weights", "-1"], 2, "whole number of 0 or more, given -1"),
        (["--model", "sdxl", "--random-weights", "abc"], 2, "whole number of 0 or more, given abc"),
        (["--model", "sdxl", "--max-batch", "0"], 2, "whole number of 1 or more, given 0"),
        (["--model", "sdxl", "--weights", "absent.pth", "--dry-run"], 1, "no such file"),
        (["--model", "sdxl", "--device", "mps", "--output", "{tmp}/x"], 1, "expected one of cpu"),
        (["--model", "sdxl", "--engine", "coffee"], 2, "invalid choice"),
        (["--model", "sdxl", "--weights", "absent.pth", "--output", "{tmp}/x"], 1, "no such file"),
        (["--model", "sdxl", "--device", "warp", "--output", "{tmp}/x"], 1, "warp"),
        (["inspect", "{tmp}"], 1, "no engine bundle"),
        (["inspect"], 2, "required: bundle"),
    ],
)
def test_wrong_usage(
    arguments: list[str], status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    try:
        code: int | str | None = main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == status
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_status_tells_that_parity_failed(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TOLERANCES, "fp32", ("max_abs", -1.0))
    assert main([*small, "--output", str(tmp_path / "bundle")]) == 1
    assert "does not agree with float32 PyTorch, and was not kept" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_inspect(small_bundle: EngineBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(small_bundle.path)]) == 0
    printed = capsys.readouterr().out
    for text in ("canonical-v1", "intact", "max_abs", small_bundle.manifest.engine):
        assert text in printed


def test_names_in_brackets_are_names(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "small[b]x.safetensors"
    weights.write_bytes(Path(small[1]).read_bytes())
    arguments = ["--weights", str(weights), *small[2:], "--output", "[red]", "--quiet"]
    assert main(arguments) == 0
    assert main(["inspect", "[red]"]) == 0
    assert "small[b]x" in capsys.readouterr().out


def test_file_size_limit(small: list[str], tmp_path: Path) -> None:
    """As a full disk: the writer of the weights fails half-way."""
    options = shlex.join([sys.executable, "-m", "npnet_export", *small, "--output", str(tmp_path / "b")])
    script = f"ulimit -f 30; exec {options}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "cannot write the bundle" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_output_that_cannot_be_printed() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-u", "-m", "npnet_export", "--list"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_inspect_tells_a_changed_file(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*small, "--output", str(tmp_path / "b"), "--quiet"]) == 0
    file = tmp_path / "b" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert main(["inspect", str(tmp_path / "b")]) == 1
    assert "is not the" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    """Stopped while it builds the full-size engine: a status of its own, and nothing left."""
    command = [
        sys.executable,
        "-m",
        "npnet_export",
        "--model",
        "sdxl",
        "--random-weights",
        "0",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "bundle")], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "building the onnxruntime engine" in line:  # libraries may say that word while they are imported
            break
    time.sleep(1)
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130, rest
    assert "interrupted; nothing was written" in rest
    assert os.listdir(tmp_path) == []

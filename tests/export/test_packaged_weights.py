"""Weights that come with a package: found without importing it, checked before they are read."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from npnet_export.cli import main
from npnet_runtime import EngineBundle
from npnet_runtime.errors import PackagedError
from npnet_runtime.files import sha256
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.weights import checkpoint
from npnet_runtime.weights.packaged import LISTING, PACKAGED, check_files
from support.damage import alter
from support.networks import SMALL_ATTENTION

QUICK = ["--engine", "torch", "--device", "cpu", "--quiet"]


@pytest.fixture
def carrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that must not be imported, in which the model `shapes` finds its weights."""
    folder = tmp_path / "site" / "carrier"
    weights = folder / "assets" / "golden.safetensors"
    weights.parent.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    checkpoint.write(weights, random_state(SMALL_ATTENTION, 0), SMALL_ATTENTION)
    entry = {"bytes": weights.stat().st_size, "sha256": sha256(weights)}
    (folder / "assets" / LISTING).write_text(json.dumps({"files": {weights.name: entry}}))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    model = replace(PACKAGED["shapes"], package="carrier", folder="assets", filename=weights.name)
    monkeypatch.setitem(PACKAGED, "shapes", model)
    return folder


def test_exported_by_name(carrier: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    assert main(["--model", "shapes", "--output", str(output), *QUICK]) == 0
    assert "carrier" not in sys.modules
    manifest = EngineBundle.open(output).manifest
    assert manifest.config == SMALL_ATTENTION
    assert manifest.weights["package"] == "carrier"
    assert manifest.weights["file"] == "assets/golden.safetensors"
    assert manifest.weights["sha256"] == sha256(carrier / "assets" / "golden.safetensors")
    assert str(tmp_path) not in manifest.to_json()
    assert main(["verify", str(output), "--samples", "1", "--device", "cpu"]) == 0
    command, *again = shlex.split(EngineBundle.open(output).rebuild_command())
    assert (command, again[:2]) == ("npnet-export", ["--model", "shapes"])
    assert main([*again, "--device", "cpu", "--quiet"]) == 0


def test_random_weights_and_other_files_of_the_same_shapes(carrier: Path, tmp_path: Path) -> None:
    assert main(["--model", "shapes", "--random-weights", "1", "--output", str(tmp_path / "a"), *QUICK]) == 0
    assert EngineBundle.open(tmp_path / "a").manifest.config == SMALL_ATTENTION
    weights = str(carrier / "assets" / "golden.safetensors")
    assert main(["--model", "shapes", "--weights", weights, "--output", str(tmp_path / "b"), *QUICK]) == 0
    assert EngineBundle.open(tmp_path / "b").manifest.weights["source"] == weights


def test_altered_weights_are_not_read(
    carrier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = carrier / "assets" / "golden.safetensors"
    alter(weights)
    for name in ("read", "own_config"):
        monkeypatch.setattr(checkpoint, name, lambda *_: pytest.fail("read before it was checked"))
    assert main(["--model", "shapes", "--output", str(tmp_path / "bundle"), *QUICK]) == 1
    assert "it was altered" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_a_package_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGED, "shapes", replace(PACKAGED["shapes"], package="no_such_package"))
    assert main(["--model", "shapes", "--output", str(tmp_path / "bundle"), *QUICK]) == 1
    assert "expected the package no_such_package" in capsys.readouterr().err


def test_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name, model in PACKAGED.items():
        assert f"  {name}\n      weights  {model.description}\n" in printed
    for noise in ("4x16x16, prompt 16x64", "16x8x8, prompt 16x96"):
        assert printed.count(f"noise    {noise}\n") == len(PACKAGED) / 2
    assert main(["--model", "shape"]) == 1
    assert "shapes, shapes-npnet" in capsys.readouterr().err


def test_listed_with_the_shapes_of_its_checkpoint(carrier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = SMALL_ATTENTION
    shapes = ("x".join(map(str, shape)) for shape in (config.latent_shape, config.text_shape))
    assert main(["--list"]) == 0
    assert "      noise    {}, prompt {}\n".format(*shapes) in capsys.readouterr().out
    alter(carrier / "assets" / "golden.safetensors")
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert "      noise    not known: " in printed
    assert "it was altered" in printed
    assert "shapes-npnet" in printed


@pytest.mark.parametrize(
    ("listing", "says"),
    [
        ("[]", "expected files listed in assets.json"),
        ("{", "expected files listed in assets.json"),
        ('{"files": {"a": {"bytes": 1}}}', "expected files listed in assets.json"),
        ('{"files": {}}', "lists no such file"),
        ('{"files": {"a": {"bytes": 2, "sha256": ""}}}', "it was altered: expected 2 bytes"),
    ],
)
def test_listings(listing: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / LISTING).write_text(listing)
    with pytest.raises(PackagedError, match=says):
        check_files(tmp_path, ["a"])

"""Golden noise along a model's own training."""

import json
from pathlib import Path

import pytest

from npnet_training.embedded import SCENES
from npnet_training.study.checkpoints import main

NETWORK = SCENES.folder / "golden" / "prompt-attention.safetensors"


def test_a_row_for_each_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "curve.json"
    models = f"{SCENES.folder},{SCENES.folder}"
    options = ["--prompts", "4", "--batch", "3", "--steps", "2", "--network", str(NETWORK)]
    assert main(["--models", models, "--output", str(output), *options]) == 0
    assert "golden noise" in capsys.readouterr().out
    document = json.loads(output.read_text())
    first, again = document["rows"]
    assert first == again
    assert set(first) == {"model", "plain", "redenoised", "golden"}
    assert first["golden"]["against_plain"]["pairs"] == 4
    assert 0 <= first["plain"]["layout"] <= 1
    assert sum(first["plain"]["failures"].values()) == pytest.approx(1 if first["plain"]["strict"] < 1 else 0)


def test_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--network", str(NETWORK), "--output", str(tmp_path / "curve.json")]
    assert main(["--models", str(tmp_path / "nothing"), *options]) == 2
    assert "found no such folder" in capsys.readouterr().err
    assert main(["--models", str(SCENES.folder), "--network", "nothing.safetensors", *options[2:]]) == 2
    assert not (tmp_path / "curve.json").exists()

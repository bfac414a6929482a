"""Pairs of noise and the same with a layout written in."""

from pathlib import Path

import pytest

from npnet_training.collecting.layouts import main
from npnet_training.pairs import PairDataset


def test_pairs_of_two_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path / "pairs"), "--prompts", "8", "--batch", "4"]
    assert main([*arguments, "--sizes", "64x64,48x64"]) == 0
    assert "8 pairs" in capsys.readouterr().out
    dataset = PairDataset.open([tmp_path / "pairs"])
    assert dataset.info.settings["strength"] == 0.5
    assert "redenoise" not in dataset.info.settings
    assert main([*arguments, "--sizes", "64x64,48x64"]) == 2  # exists
    assert "--resume" in capsys.readouterr().err


def test_sizes_of_another_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "pairs"), "--sizes", "32x32"]) == 2
    assert "expected some of 64x64, 64x48, 48x64, given 32x32" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

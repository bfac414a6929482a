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

"""The training benchmark on a small network, and its refusal to report where losses differ."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

import training
from npnet_runtime.models import MODELS
from support.networks import SMALL


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def main() -> int:
        monkeypatch.setitem(MODELS, "sdxl", dataclasses.replace(MODELS["sdxl"], config=SMALL))
        fixed = ["--device", "cpu", "--batch", "3", "--rounds", "2", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["training.py", *fixed])
        return training.main()

    return main


def test_runs(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    result = json.loads((tmp_path / "training-sdxl-cpu.json").read_text())
    assert {row["name"] for row in result["rows"]} == {"npnet", "prompt-attention", "public recipe"}
    assert next(row["ratio"] for row in result["rows"] if row["name"] == "public recipe") == 1
    public, ours = result["parity"]["losses"]
    assert public[0] > public[-1] > 0
    assert ours == pytest.approx(public, abs=1e-4)
    assert "public recipe" in capsys.readouterr().out


def test_reports_nothing_where_losses_differ(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "TOLERANCE", -1.0)
    assert run() == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert "nothing is reported" in written.err
    assert not list(tmp_path.iterdir())

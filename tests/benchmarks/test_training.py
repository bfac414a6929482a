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
    result = json.loads((tmp_path / "training-sdxl-cpu-batch3.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == {"npnet", "npnet, bf16", "prompt-attention", "public recipe"}
    assert rows["public recipe"]["ratio"] == rows["public recipe"]["processor_ratio"] == 1
    assert all(row["processor_ms"] > 0 for row in rows.values())
    public = result["parity"]["public recipe"]
    assert public[0] > public[-1] > 0
    assert result["parity"]["npnet"]["losses"] == pytest.approx(public, abs=1e-4)
    halved = result["parity"]["npnet, bf16"]["losses"]
    assert halved == pytest.approx(public, rel=1e-2)
    assert halved != result["parity"]["npnet"]["losses"], "the products were not in bfloat16"
    assert "public recipe" in capsys.readouterr().out


@pytest.mark.parametrize("tolerance", ["TOLERANCE", "BF16_TOLERANCE"])
def test_reports_nothing_where_losses_differ(
    tolerance: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, tolerance, -1.0)
    assert run() == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert "nothing is reported" in written.err
    assert not list(tmp_path.iterdir())

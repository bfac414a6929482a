"""The overhead benchmark on a small SDXL, and its refusal to report on a pipeline that is not golden."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import pipeline_overhead
from npnet_runtime import GoldenNoise


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def main() -> int:
        fixed = ["--size", "small", "--device", "cpu", "--rounds", "3", "--steps", "1", "2"]
        monkeypatch.setattr(sys, "argv", ["pipeline_overhead.py", *fixed, "--output", str(tmp_path)])
        return pipeline_overhead.main()

    return main


def test_runs(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    result = json.loads((tmp_path / "pipeline-overhead-small-cpu.json").read_text())
    assert [row["steps"] for row in result["rows"]] == [1, 2]
    assert all(value > 0 for value in result["parts_ms"].values())
    for row in result["rows"]:
        low, high = row["added_share_quartiles"]
        assert low <= row["added_share"] <= high
        assert row["published_share"] > 0
    assert "whole calls" in capsys.readouterr().out


def test_reports_nothing_where_noise_is_not_golden(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GoldenNoise, "attach", lambda self, pipe: None)
    monkeypatch.setattr(GoldenNoise, "detach", lambda self, pipe: None)
    assert run() == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert "nothing is reported" in written.err
    assert not list(tmp_path.iterdir())

"""`run_all.py` calls the other benchmarks as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import run_all


@pytest.mark.parametrize("name", ["latency", "kernels", "pipeline", "training"])
def test_options_exist(name: str, tmp_path: Path) -> None:
    plans = [run_all.plan(cuda, tmp_path)[name][0] for cuda in (True, False)]
    script = run_all.HERE / plans[0][0]
    command = [sys.executable, str(script), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for arguments in plans:
        assert all(word in text for word in arguments if word.startswith("--"))


def test_fits_eight_minutes_on_a_gpu(tmp_path: Path) -> None:
    assert sum(limit for _, limit in run_all.plan(True, tmp_path).values()) <= 480

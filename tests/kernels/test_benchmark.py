"""The kernel benchmark without a GPU: it exercises every kernel, writes its files, and claims no speed."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels

pytest.importorskip("triton")
pytest.importorskip("matplotlib")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_interpreted(tmp_path: Path) -> None:
    done = run("--interpret", "--batch", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "kernels.png").stat().st_size > 0
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert record["interpreted"]
    assert {"torch", "triton", "device"} <= record["environment"].keys()
    with (tmp_path / "kernels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["operator"] for row in rows} == {*kernels.OPERATORS}
    assert all(row["agrees"] == "True" and row["speedup_of_ours"] == "" for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_says_what_to_do() -> None:
    done = run()
    assert done.returncode == 2
    assert "--interpret" in done.stderr

"""Two exports into one folder, and exports that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from npnet_export.cli import main
from npnet_runtime import EngineBundle, GoldenNoise
from support.networks import SMALL, noise_and_prompts


@pytest.fixture
def command(small_checkpoint: Path, tmp_path: Path) -> list[str]:
    options = ["--weights", str(small_checkpoint), "--engine", "torch", "--device", "cpu"]
    return [*options, "--output", str(tmp_path / "out" / "bundle")]


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "npnet_export", *command], stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("force", [False, True])
def test_two_at_once(command: list[str], force: bool, tmp_path: Path) -> None:
    """One of them, or both in turn; the folder is whole, whoever wins."""
    processes = [start([*command, "--force"] if force else command) for _ in range(2)]
    said = [process.communicate()[1] for process in processes]
    failed = [text for process, text in zip(processes, said, strict=True) if process.returncode]
    assert len(failed) <= 1
    assert all("npnet-export: " in text and "Traceback" not in text for text in failed)
    if not force:
        assert len(failed) == 1
        assert "appeared while" in failed[0] or "--force" in failed[0]
    assert os.listdir(tmp_path / "out") == ["bundle"]
    bundle = EngineBundle.open(tmp_path / "out" / "bundle")
    assert GoldenNoise(bundle, device="cpu")(*noise_and_prompts(SMALL, 1)).isfinite().all()


def test_killed(command: list[str], tmp_path: Path) -> None:
    """SIGKILL can be tidied up after by nobody: what is left has a temporary name, and is in no one's way."""
    process = start(command)
    assert process.stderr is not None
    for line in process.stderr:
        if "building" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert not (tmp_path / "out" / "bundle").exists()
    assert main([*command, "--quiet"]) == 0
    assert (tmp_path / "out" / "bundle").is_dir()

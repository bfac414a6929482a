"""`--help` says what the commands take, at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from npnet_training.help import MODULES, file_of, render, stored


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse breaks lines differently")
@pytest.mark.parametrize("name", MODULES)
def test_is_what_the_command_says(name: str) -> None:
    assert file_of(name).read_text() == render(name), "run python -m npnet_training.help"


def test_of_every_command() -> None:
    assert {path.name for path in Path(file_of("x").parent).glob("*.txt")} == {
        file_of(n).name for n in MODULES
    }
    assert stored("npnet-export", ["verify", "--help"]) == file_of("npnet-export verify").read_text()
    for arguments in ([], ["engines/sdxl"], ["engines/sdxl", "--help"], ["--help", "--quiet"]):
        assert stored("npnet-export", arguments) is None


@pytest.mark.parametrize("name", [name for name in MODULES if " " not in name])
def test_takes_no_time(name: str) -> None:
    """The best of several: a busy machine is not the command's fault."""
    program, taken = Path(sys.executable).parent / name, []
    for _ in range(5):
        start = time.monotonic()
        done = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
        taken.append(time.monotonic() - start)
        if taken[-1] < 0.5:
            break
    assert min(taken) < 0.5
    assert done.stdout.startswith("usage: " + name)
    assert not done.stderr

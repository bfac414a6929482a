"""Threads of the commands, set before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from npnet_training import cores
from npnet_training.cores import USERS_OWN, announce, busy_cores, is_small, share_cores


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 8)
    monkeypatch.setattr(cores, "busy_cores", lambda: 3)


def test_a_small_model() -> None:
    environment: dict[str, str] = {}
    line = share_cores("npnet-collect", ["--model", "shapes", "--count", "4"], environment)
    assert environment == {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}
    assert str(line).startswith("npnet-collect: 1 thread (a small model); OMP_NUM_THREADS")


def test_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    line = share_cores("npnet-export", ["--model", "sdxl"], environment)
    assert environment["OMP_NUM_THREADS"] == "5"
    assert "5 threads (of 8 cores, those that are free)" in str(line)
    monkeypatch.setattr(cores, "busy_cores", lambda: 9)
    share_cores("npnet-export", ["--model", "sdxl"], environment := {})
    assert environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("name", USERS_OWN)
def test_the_users_own_setting_wins(name: str) -> None:
    environment = {name: "7"}
    assert share_cores("npnet-demo", [], environment) is None
    assert environment == {name: "7"}


@pytest.mark.parametrize(
    ("arguments", "small"),
    [
        (["--model", "shapes-weak"], True),
        (["--model=shapes"], True),
        (["--reward.model", "shapes"], True),
        (["--model", "sdxl", "--output", "pairs"], False),
        (["--model", "./my-shapes"], False),
        (["--config", "{tmp}/small.yaml"], True),
        (["--config={tmp}/large.yaml"], False),
        (["--data", "{tmp}/pairs"], True),
        (["--data", "{tmp}/absent"], False),
    ],
)
def test_which_is_small(arguments: list[str], small: bool, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("model: shapes-weak\ncount: 3\n")
    (tmp_path / "large.yaml").write_text("model: sdxl\n")
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "npnet-pairs.json").write_text('{\n "model": "shapes",\n "revision": null}')
    assert is_small([argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == small


def test_busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(cores, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2})
    assert busy_cores() == 0  # no such file, as on macOS
    states = iter(["cpu0 0 0 0 100 0 0 0 0\ncpu1 0 0 0 9 0 0 0 0\ncpu2 5 0 0 95 0 0 0 0\nintr 5"] * 1)
    later = "cpu0 10 0 0 100 0 0 0 0\ncpu1 10 0 0 9 0 0 0 0\ncpu2 5 0 0 105 0 0 0 0"
    monkeypatch.setattr(Path, "read_text", lambda path: next(states, later))
    assert busy_cores() == 1  # the busy one of our own two


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    announce("a line", ["--model", "shapes"])
    assert capsys.readouterr().err == "a line\n"
    for arguments in (["--quiet"], ["--version"]):
        announce("a line", arguments)
    announce(None, [])
    assert capsys.readouterr().err == ""


def test_reaches_torch() -> None:
    """In a command of its own, as OpenMP reads it once."""
    code = """
import sys
from npnet_training.scripts import demo
sys.argv = ["npnet-demo", "--version"]
try:
    demo()
except SystemExit:
    import torch
    print(torch.get_num_threads())
"""
    environment = {name: value for name, value in os.environ.items() if name not in USERS_OWN}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "1"

"""`run_all.py`: its pieces fit the other scripts, and nothing that becomes of one stops another."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pieces
import run_all
from pieces import ROOT, Piece

PLANS = {cuda: pieces.plan(cuda, Path("results")) for cuda in (True, False)}
SCRIPTS = sorted({p.arguments[0] for plan in PLANS.values() for p in plan if p.arguments[0].endswith(".py")})


def script(name: str, code: str, limit_s: int = 30, needs: tuple[str, ...] = ()) -> Piece:
    return Piece(name, f"what does {name} do?", ("-c", code), needs, limit_s)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, dict]]:
    def main(planned: tuple[Piece, ...], *arguments: str) -> tuple[int, dict]:
        monkeypatch.setattr(run_all, "plan", lambda cuda, out: planned)
        status = run_all.main(["--out", str(tmp_path), *arguments])
        return status, json.loads((tmp_path / run_all.RECORD).read_text())["pieces"]

    return main


@pytest.mark.parametrize("cuda", [True, False])
def test_plan(cuda: bool) -> None:
    plan = PLANS[cuda]
    assert len({piece.name for piece in plan}) == len(plan)
    assert all(piece.limit_s <= pieces.LONGEST_S == 180 for piece in plan)
    assert all(piece.question.endswith("?") for piece in plan)
    assert not any(str(ROOT) in str(piece) for piece in plan)


def test_the_most_important_question_comes_first() -> None:
    names = [piece.name for piece in PLANS[True]]
    kernels = ["test-kernels", "test-triton-jacobi", "test-triton-prompt_half"]
    assert names[:5] == [*kernels, "test-torch", "latency-torch-fp16"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_options_exist(name: str) -> None:
    command = [sys.executable, name, "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for piece in (*PLANS[True], *PLANS[False]):
        if piece.arguments[0] == name:
            options = {word for word in piece.arguments if word.startswith("--")}
            assert options <= set(re.findall(r"--[a-z-]+", text)), piece


@pytest.mark.slow
def test_every_gpu_test_is_in_one_piece() -> None:
    def collected(*arguments: str) -> list[str]:
        command = [sys.executable, *arguments, "--collect-only"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        return [line for line in done.stdout.splitlines() if line.startswith("tests/")]

    everything = collected(*pieces.PYTEST, "-m", "gpu")
    parts = [collected(*p.arguments) for p in PLANS[True] if p.arguments[:2] == pieces.PYTEST[:2]]
    assert sorted(test for part in parts for test in part) == sorted(everything)
    assert all(parts)


def test_nothing_stops_the_others(run: Callable) -> None:
    hang = "import time; print('has begun', flush=True); time.sleep(60)"
    planned = (
        script("raises", "raise RuntimeError('a driver')"),
        script("killed", f"import os; os.kill(os.getpid(), {signal.SIGKILL:d})"),
        script("hangs", hang, limit_s=2),
        script("lacks", "print('never')", needs=("no_such_package",)),
        script("works", "print('a result')"),
    )
    status, record = run(planned)
    assert status == 1
    outcomes = {name: piece["outcome"] for name, piece in record.items()}
    assert outcomes["raises"] == "exit status 1"
    assert "a driver" in record["raises"]["output"]
    assert outcomes["killed"] == "killed by signal 9"
    assert outcomes["hangs"] == "stopped after 2 s"
    assert "has begun" in record["hangs"]["output"]
    assert outcomes["lacks"].startswith("skipped: no_such_package not installed: pip install")
    assert outcomes["works"] == "done"
    assert "a result" in record["works"]["output"]


def test_what_ignores_a_request_to_stop_is_killed_with_its_children(
    run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run_all, "GRACE_S", 1)
    child = f"import time; time.sleep(3); open({str(tmp_path / 'outlived')!r}, 'w')"
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    assert run((script("stubborn", code, limit_s=1),))[1]["stubborn"]["outcome"] == "stopped after 1 s"
    time.sleep(3)
    assert not (tmp_path / "outlived").exists()


def test_goes_on_where_it_was(run: Callable, tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    planned = (script("counts", count), script("fails", "raise SystemExit(3)"))
    assert run(planned)[0] == 1
    assert run(planned)[1]["fails"]["outcome"] == "exit status 3"
    assert (tmp_path / "count").read_text() == "x"
    run(planned, "--again", "--only", "counts")
    assert (tmp_path / "count").read_text() == "xx"


def test_budget(run: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    planned = (script("short", "", limit_s=30), script("long", "", limit_s=100))
    status, record = run(planned, "--budget", "60")
    assert status == 1
    assert list(record) == ["short"]
    assert "--from long" in capsys.readouterr().out
    assert run(planned, "--from", "long")[0] == 0


def test_unknown_piece(run: Callable) -> None:
    with pytest.raises(SystemExit, match="expected one of known; given 'other'"):
        run((script("known", ""),), "--only", "other")


def test_damaged_record(run: Callable, tmp_path: Path) -> None:
    (tmp_path / run_all.RECORD).write_text("{")
    with pytest.raises(SystemExit, match="move it"):
        run((script("known", ""),))

"""Signal handlers of a command, and those it found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from npnet_runtime.interruption import INTERRUPTED, STOPPING, handling


@pytest.mark.parametrize("number", STOPPING)
def test_handles_and_gives_back(number: signal.Signals) -> None:
    found = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), handling(signal.default_int_handler, *STOPPING):
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, found or signal.SIG_DFL)


def test_ignored_stays_ignored() -> None:
    found = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handling(signal.default_int_handler, *STOPPING):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, found or signal.SIG_DFL)


def test_one_set_outside_python_becomes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: placed.append(handler))
    with handling(signal.default_int_handler, signal.SIGTERM):
        pass
    assert placed == [signal.default_int_handler, signal.SIG_DFL]


def test_other_threads_change_nothing() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with handling(signal.default_int_handler, signal.SIGTERM):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_status_is_that_of_the_command_wherever_it_was_interrupted(tmp_path: Path) -> None:
    # through a text that is executed, as libraries of the commands do
    (tmp_path / "command.py").write_text(
        "import sys\nfrom npnet_runtime.interruption import interrupted_status\n"
        "try:\n    exec('raise KeyboardInterrupt')\n"
        "except KeyboardInterrupt:\n    sys.exit(interrupted_status())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "command"]
    assert subprocess.run(command, env=environment, cwd=tmp_path).returncode == INTERRUPTED

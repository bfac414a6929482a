"""Signal handlers of a command, and those it found."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from npnet_runtime.interruption import handling


def test_handles_and_gives_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), handling(signal.default_int_handler, signal.SIGTERM):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_set_outside_python_becomes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = []
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

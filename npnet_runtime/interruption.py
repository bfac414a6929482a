"""Signal handlers for the time of a command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)
"""Signals beside Ctrl-C that ask a command to stop: from a scheduler, and from a terminal that is closed."""

INTERRUPTED = 130
"""Exit status of a command that was interrupted, as shells say it."""


def interrupted_status() -> int:
    """Forget an interruption that was caught, for a process that ends in order.

    Returns:
        `INTERRUPTED`.
    """
    # CPython remembers a KeyboardInterrupt that passed through `exec` of a text, as PyTorch's and SymPy's
    # do, even if it is caught later: `python -m` would end by SIGINT, whatever status it is given.
    exec("")
    return INTERRUPTED


@contextmanager
def handling(handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals) -> Iterator[None]:
    """Handle signals so; on any thread but the main one, which alone may set handlers, change nothing.

    A signal that the process was started to ignore, as `nohup` does, stays ignored.

    Args:
        handler: as `signal.signal` takes it.
        numbers: which signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, before in previous.items():
            # None: set by a library outside Python, which cannot be given back
            signal.signal(number, signal.SIG_DFL if before is None else before)

"""Signal handlers for the time of a command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handling(handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals) -> Iterator[None]:
    """Handle signals so; on any thread but the main one, which alone may set handlers, change nothing.

    Args:
        handler: as `signal.signal` takes it.
        numbers: which signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            # None: set by a library outside Python, which cannot be given back
            signal.signal(number, signal.SIG_DFL if before is None else before)

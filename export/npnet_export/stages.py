"""Progress of a long command: one line a stage, with the time since the start."""

from __future__ import annotations

import time

from rich.console import Console


class Stages:
    """Prints `[  12.3 s] what happens now`.

    Args:
        console: where to; standard error by default, so that output can be piped.
        quiet: print nothing.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True, highlight=False, quiet=quiet)
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        """Begin a stage."""
        elapsed = time.monotonic() - self._start
        self._console.print(f"[{elapsed:6.1f} s] {text}", markup=False, soft_wrap=True)

"""A bounded pool: one thing for each caller at work, made when first needed, lent to one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Pool(Generic[T]):
    """Things that one caller at a time may use.

    Args:
        make: makes one more. What it raises reaches the borrower, and uses up no turn.
        limit: how many callers are served at once; others wait for their turn.
        discard: called with a thing in whose use an error was raised, which is not lent again.
    """

    def __init__(self, make: Callable[[], T], limit: int, discard: Callable[[T], object]) -> None:
        self._make, self._discard = make, discard
        self._free: list[T] = []  # the last one returned first: its memory is warm
        self._turns = threading.BoundedSemaphore(limit)

    @contextmanager
    def borrow(self) -> Iterator[T]:
        """One of the things, for the time of a `with` block."""
        with self._turns:
            try:
                thing = self._free.pop()
            except IndexError:
                thing = self._make()
            try:
                yield thing
            except BaseException:
                self._discard(thing)
                raise
            self._free.append(thing)

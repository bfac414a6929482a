"""The bounded pool: how many things are made, who gets them, what an error does."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from npnet_runtime.backends.pool import Pool


def test_one_while_one_is_enough() -> None:
    pool = Pool(itertools.count().__next__, 4, discard=print)
    for _ in range(3):
        with pool.borrow() as thing:
            assert thing == 0


def test_never_more_than_the_limit_and_never_shared() -> None:
    made: list[object] = []
    together, lent = threading.Barrier(3), threading.Lock()
    in_use: set[int] = set()

    def make() -> list[int]:
        made.append(thing := [len(made)])
        return thing

    pool = Pool(make, 3, discard=print)

    def work(_: int) -> None:
        with pool.borrow() as thing:
            with lent:
                assert id(thing) not in in_use
                in_use.add(id(thing))
            together.wait(timeout=10)
            with lent:
                in_use.remove(id(thing))

    with ThreadPoolExecutor(9) as threads:
        list(threads.map(work, range(9)))
    assert len(made) == 3


def test_errors_discard_and_use_up_no_turn() -> None:
    discarded: list[int] = []
    pool = Pool(itertools.count().__next__, 2, discarded.append)
    for _ in range(5):
        with pytest.raises(KeyError), pool.borrow():
            raise KeyError
    assert discarded == [0, 1, 2, 3, 4]


def test_what_cannot_be_made() -> None:
    pool: Pool[object] = Pool(lambda: 1 / 0, 1, discard=print)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), pool.borrow():
            pass

"""A cluster in virtual time: workers that take so long for an item, and vanish and come back when told to."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from typing import Any

from npnet_training.collecting.dispatch import Vanished
from npnet_training.collecting.items import Item


class VirtualCluster:
    """See `npnet_training.collecting.dispatch.Cluster`.

    Args:
        seconds: that an item takes.
        away: for each worker, when it vanishes and when it is back; infinity for never.
    """

    def __init__(self, seconds: float, away: dict[int, tuple[float, float]] | None = None) -> None:
        self.seconds, self.away = seconds, away or {}
        self.now = 0.0
        self.made: dict[int, int] = {}
        self._numbers = itertools.count()
        self._free: dict[int, float] = {}
        self._outcomes: dict[int, Any] = {}
        self._heap: list[tuple[float, int]] = []

    def send(self, worker: int, item: Item) -> int:
        """An item for a worker, behind what it has."""
        begin = max(self.now, self._free.get(worker, 0.0))
        gone, back = self.away.get(worker, (float("inf"), float("inf")))
        end = begin + self.seconds
        if self.now < gone < end:  # what waits goes with what is worked on
            self._free[worker] = back
            return self._later(gone, Vanished(f"worker {worker}"))
        self._free[worker] = end
        self.made[item.number] = self.made.get(item.number, 0) + 1
        return self._later(end, item.number)

    def ping(self, worker: int) -> int:
        """Ready when the worker is back."""
        return self._later(max(self.now, self.away[worker][1]), True)

    def wait(self, references: Sequence[int], timeout: float | None) -> int | None:
        """The next that is ready; time passes until then."""
        end, reference = self._heap[0]
        if timeout is not None and end - self.now > timeout:
            return None
        assert reference in references
        heapq.heappop(self._heap)
        self.now = max(self.now, end)
        return reference

    def result(self, reference: int) -> Any:
        """Of one that is ready."""
        outcome = self._outcomes.pop(reference)
        if isinstance(outcome, Vanished):
            raise outcome
        return outcome

    def _later(self, end: float, outcome: Any) -> int:
        reference = next(self._numbers)
        self._outcomes[reference] = outcome
        heapq.heappush(self._heap, (end, reference))
        return reference

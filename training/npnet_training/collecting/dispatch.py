"""Who gets which item, among workers that may vanish: a process, or a whole machine in the middle of it.

It knows nothing of Ray, and what it holds does not grow with the number of items.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from npnet_training.collecting.items import Item
from npnet_training.errors import TrainError

IN_FLIGHT = 2  # items a worker has been given: one it works on, one that waits
RETRIES = 3  # of an item whose worker vanished, and of a worker that does not come back


class Vanished(Exception):
    """A worker is gone, and what it was given with it."""


class Cluster(Protocol):
    """What dispatching asks of workers; references are hashable."""

    def send(self, worker: Any, item: Item) -> Any:
        """Give a worker an item; a reference to its result."""

    def ping(self, worker: Any) -> Any:
        """A reference that is ready once the worker is there again."""

    def wait(self, references: Sequence[Any], timeout: float | None) -> Any | None:
        """One that is ready; None if none was in so many seconds."""

    def result(self, reference: Any) -> Any:
        """Of one that is ready.

        Raises:
            Vanished: its worker is gone.
        """


def dispatch(
    cluster: Cluster, workers: Sequence[Any], todo: Iterator[Item], patience: float
) -> Iterator[tuple[Item, Any]]:
    """Have every item done once; each with its result, as they are done.

    What a vanished worker had is done by others, and it is given work again when it is back, perhaps on
    another machine.

    Args:
        cluster: of the workers.
        workers: of it.
        todo: items, read as they are needed.
        patience: seconds to wait when not one worker is there.

    Raises:
        TrainError: an item whose worker vanished more than `RETRIES` times, or no worker came back.
    """
    running: dict[Any, tuple[Item, Any]] = {}
    pings: dict[Any, Any] = {}
    again: deque[Item] = deque()
    lost: Counter[int] = Counter()
    failed: Counter[Any] = Counter()
    load: Counter[Any] = Counter(dict.fromkeys(workers, 0))

    def fill(worker: Any, most: int = IN_FLIGHT) -> None:
        while worker in load and load[worker] < most:
            item = again.popleft() if again else next(todo, None)
            if item is None:
                return
            running[cluster.send(worker, item)] = item, worker
            load[worker] += 1

    def vanished(worker: Any) -> None:
        if worker in load:
            del load[worker]
            pings[cluster.ping(worker)] = worker

    for most in range(1, IN_FLIGHT + 1):  # the first items to as many workers as there are
        for worker in workers:
            fill(worker, most)
    while running or again:
        ready = cluster.wait([*running, *pings], None if running else patience)
        if ready is None:
            raise TrainError(
                f"no worker came back in {patience:g} s, and not all is done; go on with --resume when there "
                "are machines again"
            )
        if ready in pings:
            worker = pings.pop(ready)
            try:
                cluster.result(ready)
            except Vanished as error:
                failed[worker] += 1
                if failed[worker] <= RETRIES:
                    pings[cluster.ping(worker)] = worker
                elif not load and not pings:
                    raise TrainError(
                        f"no worker can be started again ({error}); go on with --resume, perhaps with a "
                        "smaller --batch"
                    ) from error
                continue
            load[worker] = 0
            fill(worker)
            continue
        item, worker = running.pop(ready)
        if worker in load:
            load[worker] -= 1
        try:
            result = cluster.result(ready)
        except Vanished as error:
            lost[item.number] += 1
            if lost[item.number] > RETRIES:
                raise TrainError(
                    f"a worker died more than {RETRIES} times ({error}); go on with --resume, perhaps with a "
                    "smaller --batch"
                ) from error
            again.append(item)
            vanished(worker)
            for other in [*load]:
                fill(other)
            continue
        failed[worker] = 0
        lost.pop(item.number, None)
        yield item, result
        fill(worker)

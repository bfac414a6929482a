"""Items are done once each, whatever happens to the workers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from npnet_training.collecting.dispatch import RETRIES, dispatch
from npnet_training.collecting.items import Item
from npnet_training.errors import TrainError
from support.virtual_cluster import VirtualCluster

NEVER = float("inf")


def items(count: int) -> Iterator[Item]:
    return (Item(number, number, ("a",), (number,)) for number in range(count))


def run(cluster: VirtualCluster, workers: int, count: int, patience: float = 600.0) -> list[int]:
    return [item.number for item, _ in dispatch(cluster, range(workers), items(count), patience)]


def test_every_item_once_and_all_workers_busy() -> None:
    cluster = VirtualCluster(10.0)
    assert sorted(run(cluster, 4, 40)) == [*range(40)]
    assert cluster.now == 100.0
    assert set(cluster.made.values()) == {1}


def test_fewer_items_than_workers() -> None:
    cluster = VirtualCluster(10.0)
    assert sorted(run(cluster, 8, 3)) == [0, 1, 2]
    assert cluster.now == 10.0


def test_a_machine_vanishes_in_the_middle_and_does_not_come_back() -> None:
    """Two of four workers: what they had is done by the others, one item more for each."""
    cluster = VirtualCluster(10.0, {2: (25.0, NEVER), 3: (25.0, NEVER)})
    assert sorted(run(cluster, 4, 40)) == [*range(40)]
    assert cluster.now == pytest.approx(10 * (2 + (40 - 8) / 2))


def test_a_machine_that_comes_back_is_given_work_again() -> None:
    cluster = VirtualCluster(10.0, {2: (25.0, 60.0), 3: (25.0, 60.0)})
    assert sorted(run(cluster, 4, 400)) == [*range(400)]
    assert cluster.now == pytest.approx(1000 + 20, abs=10)


def test_all_vanish_and_come_back() -> None:
    cluster = VirtualCluster(10.0, {0: (15.0, 300.0), 1: (15.0, 200.0)})
    assert sorted(run(cluster, 2, 10)) == [*range(10)]


def test_all_vanish_for_good() -> None:
    cluster = VirtualCluster(10.0, {0: (15.0, NEVER), 1: (15.0, NEVER)})
    with pytest.raises(TrainError, match=r"no worker came back in 600 s, .* go on with --resume"):
        run(cluster, 2, 10)


def test_an_item_that_kills_its_worker_ends_the_run() -> None:
    class Deadly(VirtualCluster):
        def send(self, worker: int, item: Item) -> int:
            if item.number == 3:
                self.away[worker] = (self.now + 0.5, self.now + 1)
            elif worker in self.away and self.now >= self.away[worker][1]:
                del self.away[worker]
            return super().send(worker, item)

    with pytest.raises(TrainError, match=f"died more than {RETRIES} times"):
        run(Deadly(10.0), 3, 20)


def test_a_million_prompts_in_flat_memory_and_linear_time() -> None:
    """62,500 items of 16 prompts: 64 workers are 64 times as fast as one, and nothing piles up."""
    count = 62_500
    tracemalloc.start()
    try:
        cluster = VirtualCluster(
            30.0, {worker: (1000.0 * worker, 1000.0 * worker + 500) for worker in range(1, 8)}
        )
        peak_early = 0
        done = 0
        for done, _ in enumerate(dispatch(cluster, range(64), items(count), 600.0), 1):
            if done == 2_000:
                cluster.made.clear()
                tracemalloc.reset_peak()
                peak_early = tracemalloc.get_traced_memory()[1]
            elif done % 1_000 == 0:
                cluster.made.clear()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done == count
    assert peak < peak_early + 2_000_000
    ideal = count * 30.0 / 64
    assert ideal <= cluster.now < 1.01 * ideal + 100

"""Batches are a function of the seed and the step alone: every epoch another order, no pair twice in it."""

from __future__ import annotations

import numpy as np
import pytest

from npnet_training.errors import TrainError
from npnet_training.training.order import BatchOrder, split_by_prompt

ROWS = np.arange(100, 123)  # 23 rows of a larger dataset: 5 batches of 4, 3 rows left


def order(**changes: int) -> BatchOrder:
    return BatchOrder(ROWS, **{"batch_size": 4, "seed": 7, **changes})


def epoch_of(batches: BatchOrder, epoch: int) -> list[int]:
    steps = batches.steps_per_epoch
    parts = list(batches.parts(epoch * steps, (epoch + 1) * steps))
    assert {part.epoch for part in parts} == {epoch}
    return [row for part in parts for row in part.rows]


def test_an_epoch_has_every_row_at_most_once() -> None:
    batches = order()
    assert batches.steps_per_epoch == 5
    for epoch in range(3):
        rows = epoch_of(batches, epoch)
        assert len(rows) == len(set(rows)) == 20
        assert set(rows) <= set(ROWS.tolist())


def test_every_epoch_has_an_order_of_its_own() -> None:
    first, second, third = (epoch_of(order(), epoch) for epoch in range(3))
    assert first != second != third != first
    assert set(first) | set(second) | set(third) == set(ROWS.tolist())  # what was left out comes later
    assert first != sorted(first)


def test_the_seed_decides() -> None:
    assert epoch_of(order(), 1) == epoch_of(order(), 1)
    assert epoch_of(order(), 1) != epoch_of(order(seed=8), 1)


def test_goes_on_in_the_middle_of_an_epoch() -> None:
    whole = list(order().parts(0, 12))
    assert list(order().parts(0, 7)) + list(order().parts(7, 12)) == whole
    assert [part.epoch for part in whole] == [0] * 5 + [1] * 5 + [2] * 2


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_a_batch_is_the_same_however_it_is_cut(processes: int, accumulation: int) -> None:
    whole = [set(part.rows) for part in order().parts(0, 6)]
    cut = [
        list(order(processes=processes, process=process, accumulation=accumulation).parts(0, 6))
        for process in range(processes)
    ]
    size = 4 // (processes * accumulation)
    assert all(len(part.rows) == size for parts in cut for part in parts)
    for step, rows in enumerate(whole):
        own = slice(step * accumulation, (step + 1) * accumulation)
        found = [row for parts in cut for part in parts[own] for row in part.rows]
        assert len(found) == 4
        assert set(found) == rows


def test_validation_leaves_nothing_out() -> None:
    found = [order(processes=2, process=process).parts_of(ROWS) for process in range(2)]
    assert all(0 < len(part.rows) <= 2 for parts in found for part in parts)
    assert sorted(row for parts in found for part in parts for row in part.rows) == ROWS.tolist()


def test_refused() -> None:
    with pytest.raises(
        TrainError, match=r"expected a multiple of 6 \(3 processes x 2 accumulated parts\), given 4"
    ):
        order(processes=3, accumulation=2)
    with pytest.raises(TrainError, match="expected at most the 23 pairs there are to train on, given 24"):
        order(batch_size=24)
    assert order(batch_size=23).steps_per_epoch == 1


def test_no_prompt_is_on_both_sides_and_each_stays_on_its_side() -> None:
    prompts = [f"prompt {number % 400}" for number in range(1000)]
    held = split_by_prompt(prompts, 0.1, 3)
    sides = {
        prompt: {bool(side) for p, side in zip(prompts, held, strict=True) if p == prompt}
        for prompt in prompts
    }
    assert all(len(side) == 1 for side in sides.values())
    assert 0.05 < held.mean() < 0.15
    grown = split_by_prompt([*prompts, *(f"another {number}" for number in range(50))], 0.1, 3)
    assert (grown[:1000] == held).all()
    assert (split_by_prompt(prompts, 0.1, 4) != held).any()
    assert not split_by_prompt(prompts, 0.0, 3).any()
    assert split_by_prompt(["half a surrogate \udc80"], 1.0, 3).all()


def test_a_batch_is_of_one_group() -> None:
    groups = np.array([0, 1, 0, 2, 1, 0, 0, 1, 1, 0, 0, 1])
    rows = np.flatnonzero(np.arange(12) != 5)
    orders = [BatchOrder(rows, 2, 7, 2, process, groups=groups) for process in (0, 1)]
    assert orders[0].steps_per_epoch == 2 + 2  # of five rows each; the third group has one
    parts = [list(order.parts(0, 12)) for order in orders]
    for one, other in zip(*parts, strict=True):
        batch = [*one.rows, *other.rows]
        assert len(set(batch)) == 2
        assert len(set(groups[batch])) == 1
    kinds = [
        [int(groups[part.rows[0]]) for part in parts[0][4 * epoch : 4 * epoch + 4]] for epoch in range(3)
    ]
    assert all(sorted(found) == [0, 0, 1, 1] for found in kinds)
    assert len({tuple(found) for found in kinds}) > 1
    given = [row for order in orders for part in order.parts_of(rows) for row in part.rows]
    assert sorted(given) == rows.tolist()
    with pytest.raises(TrainError, match="at most the 5 pairs there are to train on, of one size, given 6"):
        BatchOrder(rows, 6, 7, groups=groups)


def test_a_window_reads_few_files_at_a_time_and_loses_nothing() -> None:
    shards = np.repeat(np.arange(20), 16)
    groups = shards % 2
    order = BatchOrder(np.arange(320), 8, 3, groups=groups, shards=shards, window=4)
    whole = BatchOrder(np.arange(320), 8, 3, groups=groups)
    assert order.steps_per_epoch == whole.steps_per_epoch == 40
    batches = [part.rows for part in order.parts(0, 40)]
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == [*range(320)]
    for batch in batches:
        assert len({int(groups[row]) for row in batch}) == 1
    for start in range(0, 40, 8):  # a window's 64 rows are 8 batches, but for what waits for a whole one
        files = {int(shards[row]) for batch in batches[start : start + 8] for row in batch}
        assert len(files) <= 6
    other = [row for part in order.parts(40, 80) for row in part.rows]
    assert other != rows
    assert sorted(other) == sorted(rows)
    # the same batches on any number of processes
    halves = [
        [*BatchOrder(np.arange(320), 8, 3, 2, process, groups=groups, shards=shards, window=4).parts(0, 40)]
        for process in range(2)
    ]
    for batch, one, two in zip(batches, *halves, strict=True):
        assert sorted(batch) == sorted([*one.rows, *two.rows])


def test_without_a_window_the_order_is_that_of_old() -> None:
    """Runs that were begun before there were windows go on with the same batches."""
    groups = np.arange(40) % 2
    order = BatchOrder(np.arange(40), 4, 7, groups=groups, shards=np.arange(40))
    random = np.random.default_rng([7, 0])
    rows = random.permutation(40)
    parts = [rows[groups[rows] == group] for group in (0, 1)]
    batches = [part[start : start + 4] for part in parts for start in range(0, 20, 4)]
    expected = [batches[place].tolist() for place in random.permutation(len(batches))]
    assert [part.rows for part in order.parts(0, 10)] == expected

"""Which pairs make up which batch: a function of the seed and the step alone, whatever the hardware.

So there is no sampler state to store, and a run may be resumed on another number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from npnet_training.errors import TrainError


class BatchRows(NamedTuple):
    """The rows of a dataset that form one part of a batch, and the epoch they are read in."""

    epoch: int
    rows: Sequence[int]


@dataclass(frozen=True)
class BatchOrder:
    """Shuffled batches of an optimizer step, cut into equal parts for processes and accumulation.

    An epoch is a permutation of the rows, of which those of one group form batches; what is left after a
    group's last whole batch waits for a later epoch.

    Args:
        rows: rows of the dataset to train on.
        batch_size: pairs of an optimizer step.
        seed: of the permutations.
        processes: how many there are.
        process: which this is, from 0.
        accumulation: parts of a process's share of a batch.
        groups: of every row of the dataset, such as the shape of its noise; None for one.
        shards: of every row of the dataset, the file it is in.
        window: read so many files at a time, in an order of chance, and shuffle among their rows only; 0
            shuffles among all rows.

    Raises:
        TrainError: fewer rows than one batch, or a batch that cannot be cut into equal parts.
    """

    rows: np.ndarray
    batch_size: int
    seed: int
    processes: int = 1
    process: int = 0
    accumulation: int = 1
    groups: np.ndarray | None = None
    shards: np.ndarray | None = None
    window: int = 0

    def __post_init__(self) -> None:
        parts = self.processes * self.accumulation
        if self.batch_size % parts:
            raise TrainError(
                f"--batch-size: expected a multiple of {parts} ({self.processes} processes x "
                f"{self.accumulation} accumulated parts), given {self.batch_size}"
            )
        most = max((len(part) for part in self._grouped(self.rows)), default=0)
        if most < self.batch_size:
            raise TrainError(
                f"--batch-size: expected at most the {most} pairs there are to train on"
                f"{', of one size' if most < len(self.rows) else ''}, given {self.batch_size}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return sum(len(part) // self.batch_size for part in self._grouped(self.rows))

    @property
    def part_size(self) -> int:
        """Pairs of one part, which one forward pass takes."""
        return self.batch_size // (self.processes * self.accumulation)

    def parts(self, first_step: int, last_step: int) -> Iterator[BatchRows]:
        """This process's parts of the steps `first_step` up to but not including `last_step`, in order."""
        batches: list[np.ndarray] = []
        order_epoch = -1
        for step in range(first_step, last_step):
            epoch, index = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                batches, order_epoch = self._batches(epoch), epoch
            batch = batches[index]
            share = batch[self.process :: self.processes]
            for start in range(0, len(share), self.part_size):
                yield BatchRows(epoch, share[start : start + self.part_size].tolist())

    def parts_of(self, rows: np.ndarray) -> list[BatchRows]:
        """This process's share of some rows, such as those of validation, in parts; none is left out."""
        own = rows[self.process :: self.processes]
        return [BatchRows(0, part.tolist()) for part in in_batches(own, self.groups, self.part_size)]

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """Whole batches of an epoch, those of different groups in turns by chance."""
        random, size = np.random.default_rng([self.seed, epoch]), self.batch_size
        left: dict[int, np.ndarray] = {}
        found: list[np.ndarray] = []
        for rows in self._windows(random):
            own = np.zeros(len(rows), int) if self.groups is None else self.groups[rows]
            batches = []
            for group in map(int, np.unique(own)):
                part = np.concatenate([left.get(group, rows[:0]), rows[own == group]])
                whole = len(part) // size * size
                batches += [part[start : start + size] for start in range(0, whole, size)]
                left[group] = part[whole:]
            mixed = random.permutation(len(batches)) if len(left) > 1 else range(len(batches))
            found += [batches[place] for place in mixed]
        return found

    def _windows(self, random: np.random.Generator) -> list[np.ndarray]:
        """All rows shuffled; with a window those of a handful of files each."""
        rows = self.rows[random.permutation(len(self.rows))]
        if not self.window or self.shards is None:
            return [rows]
        files = np.unique(self.shards[rows])
        chosen = files[random.permutation(len(files))]
        cuts = range(0, len(chosen), self.window)
        return [rows[np.isin(self.shards[rows], chosen[at : at + self.window])] for at in cuts]

    def _grouped(self, rows: np.ndarray) -> list[np.ndarray]:
        return by_group(rows, self.groups)


def by_group(rows: np.ndarray, groups: np.ndarray | None) -> list[np.ndarray]:
    """Rows of each group, in the order in which they are given; `groups` of every row of the dataset."""
    if groups is None:
        return [rows]
    own = groups[rows]
    return [rows[own == group] for group in np.unique(own)]


def in_batches(rows: np.ndarray, groups: np.ndarray | None, size: int) -> list[np.ndarray]:
    """All rows, at most so many of one group at a time."""
    return [
        part[start : start + size] for part in by_group(rows, groups) for start in range(0, len(part), size)
    ]


def split_by_prompt(prompts: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Whether each row is for validation, (rows,) bool: decided by a hash of its prompt.

    So no prompt is on both sides, and a prompt stays on its side when the dataset grows.

    Args:
        prompts: of every row.
        share: of the distinct prompts, about.
        seed: another seed makes another split.
    """
    decided = {prompt: _uniform(prompt, seed) < share for prompt in set(prompts)}
    return np.fromiter((decided[prompt] for prompt in prompts), bool, len(prompts))


def _uniform(prompt: str, seed: int) -> float:
    digest = sha256(f"{seed}:{prompt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

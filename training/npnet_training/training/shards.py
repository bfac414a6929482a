"""Rows of numbers kept on disk in shards, read through memory maps: the two caches of a training run.

A shard is a `.npy` file that is written whole or not at all, so several processes may fill a folder, a
killed one leaves nothing half done, and a run reads no more of it than its batches need.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from npnet_runtime.files import atomic_file
from npnet_training.errors import TrainError


def write_shard(path: Path, rows: np.ndarray) -> None:
    """Write rows (n, ...) as one shard.

    Raises:
        TrainError: the folder cannot be written, or is full.
    """
    try:
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
    except OSError as error:
        raise TrainError(
            f"{path}: cannot write the cache ({error}); make room, or name another --cache-dir"
        ) from error


def open_shard(path: Path, rows: int, shape: tuple[int | None, ...]) -> np.ndarray:
    """A memory map of a shard.

    Args:
        path: the file.
        rows: how many it must hold.
        shape: of one row; None where it may be anything.

    Raises:
        TrainError: damaged, or of other shapes.
    """
    try:
        shard = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TrainError(f"{path}: damaged cache file ({error}); delete it") from error
    expected = (rows, *shape)
    fits = len(shard.shape) == len(expected) and all(
        side in (None, given) for side, given in zip(expected, shard.shape, strict=True)
    )
    if not fits:
        raise TrainError(f"{path}: expected a cache file of shape {expected}, given {shard.shape}; delete it")
    return shard


def gather(shards: Sequence[np.ndarray], places: Sequence[tuple[int, int]]) -> np.ndarray:
    """Rows at (shard, row) places, copied into one array; zeros where a row is shorter than the longest."""
    parts = [shards[shard][row] for shard, row in places]
    longest = np.max([part.shape for part in parts], axis=0)
    out = np.zeros((len(places), *longest), parts[0].dtype)
    for row, part in zip(out, parts, strict=True):
        row[tuple(slice(side) for side in part.shape)] = part
    return out

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


def open_shard(path: Path, rows: int, shape: tuple[int, ...]) -> np.ndarray:
    """A memory map of a shard.

    Args:
        path: the file.
        rows: how many it must hold.
        shape: of one row.

    Raises:
        TrainError: damaged, or of other shapes.
    """
    try:
        shard = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TrainError(f"{path}: damaged cache file ({error}); delete it") from error
    if shard.shape != (rows, *shape):
        raise TrainError(
            f"{path}: expected a cache file of shape {(rows, *shape)}, given {shard.shape}; delete it"
        )
    return shard


def gather(shards: Sequence[np.ndarray], places: Sequence[tuple[int, int]]) -> np.ndarray:
    """Rows at (shard, row) places, copied into one array."""
    first = shards[places[0][0]]
    out = np.empty((len(places), *first.shape[1:]), first.dtype)
    for position, (shard, row) in enumerate(places):
        out[position] = shards[shard][row]
    return out

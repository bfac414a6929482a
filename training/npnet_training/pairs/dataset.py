"""Random access to the noise pairs in one or several folders."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from npnet_training.errors import DatasetError
from npnet_training.pairs.info import PairInfo
from npnet_training.pairs.shard import damaged, noise_shape, open_shard, read_rows
from npnet_training.sampling.noise import draw_noise
from npnet_training.storage import Location, listed, locate, open_binary, size

CACHE_BYTES = 256 << 20  # a dataset of a small model is read once, a large one never held in memory
_FOOTER_BYTES = 1 << 16


@dataclass(frozen=True)
class PairBatch:
    """Some rows: source and target are (B, C, H, W) float32 on the CPU."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    source: Tensor
    target: Tensor


class PairDataset:
    """The pairs of a model; `open` makes it."""

    def __init__(
        self,
        info: PairInfo,
        shards: list[tuple[Location, tuple[int, int, int]]],
        places: np.ndarray,
        prompts: list[str],
        seeds: list[int],
    ) -> None:
        self.info = info
        self.shapes = [*dict.fromkeys(shape for _, shape in shards)]
        of_shard = np.array([self.shapes.index(shape) for _, shape in shards])
        self.groups = of_shard[places[:, 0]]
        self.prompts = prompts
        self.seeds = seeds
        self._shards = [path for path, _ in shards]
        self._places = places
        self._files: dict[int, pq.ParquetFile] = {}
        self._starts: dict[int, np.ndarray] = {}
        self._groups: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray | None]] = OrderedDict()
        self._held = 0
        self._process = os.getpid()

    @classmethod
    def open(cls, paths: Iterable[str | Path], *, kept_only: bool = True) -> Self:
        """Open one or several folders of the same model as one dataset.

        Args:
            paths: folders as `npnet-collect` writes them, or URLs of fsspec.
            kept_only: without the pairs that the selection rule refused.

        Raises:
            DatasetError: missing, damaged, empty, of different models, or with a shard of another dataset.
            StorageError: a URL that fsspec does not know or cannot reach.
        """
        info: PairInfo | None = None
        first: Location | None = None
        shards: list[tuple[Location, tuple[int, int, int]]] = []
        places: list[np.ndarray] = []
        prompts: list[str] = []
        seeds: list[int] = []
        digest = sha256(b"kept" if kept_only else b"all")
        total = 0
        for folder in map(locate, paths):
            found = PairInfo.read(folder)
            if info is None:
                info, first = found, folder
            _require_same(info, first, found, folder)
            files = listed(folder / "data", ".parquet")
            if not files:
                raise DatasetError(f"{folder}: no pairs; collect some with npnet-collect")
            for path in files:
                table = read_rows(path, found)
                rows = np.arange(len(table))
                total += len(rows)
                if kept_only:
                    rows = np.flatnonzero(table["kept"].to_numpy())
                places.append(np.stack([np.full(len(rows), len(shards)), rows], 1))
                texts, numbers = table["prompt"].to_pylist(), table["seed"].to_pylist()
                prompts += [texts[row] for row in rows]
                seeds += [numbers[row] for row in rows]
                shards.append((path, noise_shape(path, table, found)))
                digest.update(_content(path))
        if info is None:
            raise DatasetError("expected at least one folder of noise pairs, given none")
        if not prompts:
            raise DatasetError(
                f"no pair to train on: of {total} collected none was kept; collect with another --rule, "
                "or more prompts"
            )
        info = replace(info, digest=digest.hexdigest())
        return cls(info, shards, np.concatenate(places), prompts, seeds)

    @property
    def files(self) -> np.ndarray:
        """Which of its shards each row is in, (rows,)."""
        found: np.ndarray = self._places[:, 0]
        return found

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, rows: Sequence[int]) -> PairBatch:
        """The pairs in the given rows, of one shape.

        Raises:
            DatasetError: of several shapes, or damaged.
        """
        groups = {int(self.groups[row]) for row in rows}
        if len(groups) != 1:
            raise DatasetError(f"expected pairs of one size in a batch, given {len(groups)}")
        shape = self.shapes[groups.pop()]
        targets, sources = [], []
        for row in rows:
            shard, place = self._places[row]
            group, offset = self._group(int(shard), int(place))
            target, source = self._read(int(shard), group, shape)
            targets.append(torch.from_numpy(target[offset].astype(np.float32)).view(shape))
            if source is None:
                sources.append(draw_noise([self.seeds[row]], shape)[0])
            else:
                sources.append(torch.from_numpy(source[offset].astype(np.float32)).view(shape))
        return PairBatch(
            [self.prompts[row] for row in rows],
            [self.seeds[row] for row in rows],
            torch.stack(sources),
            torch.stack(targets),
        )

    def _group(self, shard: int, place: int) -> tuple[int, int]:
        if self._process != os.getpid():  # open files of a remote system do not survive a fork
            self._files, self._starts, self._process = {}, {}, os.getpid()
        if shard not in self._files:
            file = open_shard(self._shards[shard])
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self._files[shard] = file
            self._starts[shard] = np.concatenate([[0], np.cumsum(sizes)])
        starts = self._starts[shard]
        group = int(np.searchsorted(starts, place, "right")) - 1
        return group, place - int(starts[group])

    def _read(
        self, shard: int, group: int, shape: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        key = shard, group
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        try:
            table = self._files[shard].read_row_group(group, ["source", "target"])
        except (OSError, pa.ArrowException) as error:
            raise damaged(self._shards[shard], error) from error
        width = int(np.prod(shape))
        found = (
            _values(table["target"], width, self._shards[shard]),
            None if table["source"].null_count else _values(table["source"], width, self._shards[shard]),
        )
        self._groups[key] = found
        self._held += _size(found)
        while self._held > CACHE_BYTES and len(self._groups) > 1:
            self._held -= _size(self._groups.popitem(last=False)[1])
        return found

    def __getstate__(self) -> dict[str, object]:
        # Files are opened again in a worker process.
        return self.__dict__ | {"_files": {}, "_starts": {}, "_groups": OrderedDict(), "_held": 0}


def _values(column: pa.ChunkedArray, width: int, path: Location) -> np.ndarray:
    array: np.ndarray = column.combine_chunks().flatten().to_numpy()
    if len(array) != width * len(column):
        raise DatasetError(
            f"{path}: expected noise of {width} numbers, given {len(array) // max(1, len(column))}: "
            "a shard of another model"
        )
    return array.reshape(-1, width)


def _size(group: tuple[np.ndarray, np.ndarray | None]) -> int:
    return sum(part.nbytes for part in group if part is not None)


def _content(path: Location) -> bytes:
    """Digest of a shard's name, size and footer, which holds statistics of every column."""
    length = size(path)
    with open_binary(path) as file:
        file.seek(max(0, length - _FOOTER_BYTES))
        return sha256(f"{path.name} {length}".encode() + file.read()).digest()


def _require_same(info: PairInfo, first: Location | None, found: PairInfo, folder: Location) -> None:
    for name in ("model", "revision", "latent_shape", "text_shape", "texts"):
        expected, given = getattr(info, name), getattr(found, name)
        if expected != given:
            raise DatasetError(
                f"{folder}: its {name.replace('_', ' ')} is {given}, that of {first} is {expected}; "
                "train on pairs of one model"
            )

"""The SVD of every source noise, computed once and kept on disk, and the pairs fit to be trained on.

The factors do not depend on the weights, so the published loop, which computes them in every step, repeats
itself. One row of the cache holds u, s and vh of one pair in float32: 525 kB for SDXL's 256 x 256 matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npnet_kernels import SIGN_RULE, SVD, latent_to_matrix, svd
from npnet_training.errors import DatasetError
from npnet_training.training.order import in_batches
from npnet_training.training.shards import gather, open_shard, write_shard
from npnet_training.training.source import PairSource

ROWS_PER_SHARD = 512
BATCH = 64


def matrix_shape(latent_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of the matrix of a (C, H, W) noise, `npnet_kernels.latent_to_matrix`."""
    matrix = latent_to_matrix(torch.empty(1, *latent_shape, device="meta"))
    return matrix.shape[1], matrix.shape[2]


def factor_bytes(latent_shape: tuple[int, int, int]) -> int:
    """Size of one pair's factors in the cache, in bytes."""
    return 4 * sum(_widths(latent_shape))


def _widths(latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    rows, columns = matrix_shape(latent_shape)
    k = min(rows, columns)
    return rows * k, k, k * columns


def compute_factors(source: Tensor) -> SVD:
    """Factors of (B, C, H, W) float32 noise under the canonical sign rule."""
    return svd(latent_to_matrix(source), signs="canonical")


def _chunks(pairs: PairSource) -> Iterator[range]:
    for start in range(0, len(pairs), ROWS_PER_SHARD):
        yield range(start, min(start + ROWS_PER_SHARD, len(pairs)))


class FactorCache:
    """The factors of a dataset's source noises.

    Args:
        root: the cache folder; what belongs to this dataset and sign rule has a folder of its own in it.
        pairs: the dataset.
        with_factors: false keeps only which pairs are finite.
    """

    def __init__(self, root: Path, pairs: PairSource, *, with_factors: bool = True) -> None:
        self.folder = root / "factors" / f"{pairs.info.digest[:32]}-{SIGN_RULE}"
        self.pairs = pairs
        self.with_factors = with_factors
        self.widths = _widths(pairs.info.latent_shape) if with_factors else (0, 0, 0)
        self._shards: list[np.ndarray] = []

    def fill(self, device: torch.device, *, process: int = 0, processes: int = 1) -> None:
        """Compute what is missing of this process's share; other processes fill theirs at the same time.

        Raises:
            TrainError: the cache cannot be written.
        """
        for number, rows in enumerate(_chunks(self.pairs)):
            if number % processes != process:
                continue
            if not self._finite_path(number).exists():
                write_shard(self._finite_path(number), self._finite(rows))
            if self.with_factors and not self._path(number).exists():
                finite = open_shard(self._finite_path(number), len(rows), ())
                write_shard(self._path(number), self._factors(rows, finite, device))

    def _finite(self, rows: range) -> np.ndarray:
        finite = np.zeros(len(rows), bool)
        for part in in_batches(np.asarray(rows), self.pairs.groups, BATCH):
            batch = self.pairs.batch(part.tolist())
            both = torch.stack([batch.source.flatten(1), batch.target.flatten(1)])
            finite[part - rows.start] = both.isfinite().all(-1).all(0).numpy()
        return finite

    def _factors(self, rows: range, finite: np.ndarray, device: torch.device) -> np.ndarray:
        # Rows of pairs that are not finite stay NaN; nothing ever reads them.
        out = np.full((len(rows), sum(self.widths)), np.nan, np.float32)
        good = np.flatnonzero(finite)
        for start in range(0, len(good), BATCH):
            places = good[start : start + BATCH]
            source = self.pairs.batch([rows[place] for place in places]).source.to(device)
            factors = compute_factors(source)
            out[places] = torch.cat([part.flatten(1) for part in factors], 1).cpu().numpy()
        return out

    def usable(self) -> np.ndarray:
        """Whether source and target of each pair are finite, (pairs,) bool, once every process has filled.

        Raises:
            DatasetError: no pair is.
        """
        shards = [
            open_shard(self._finite_path(n), len(rows), ()) for n, rows in enumerate(_chunks(self.pairs))
        ]
        finite = np.concatenate(shards) if shards else np.zeros(0, bool)
        if not finite.any():
            raise DatasetError(
                f"no pair to train on: of {len(finite)} kept pairs none is finite; collect again with "
                "another selection rule, or more prompts"
            )
        return finite

    def get(self, rows: list[int]) -> SVD:
        """Factors of the sources in the given rows, on the CPU."""
        if not self._shards:
            width = (sum(self.widths),)
            self._shards = [
                open_shard(self._path(number), len(chunk), width)
                for number, chunk in enumerate(_chunks(self.pairs))
            ]
        flat = torch.from_numpy(gather(self._shards, [divmod(row, ROWS_PER_SHARD) for row in rows]))
        u, s, vh = flat.split(self.widths, 1)
        k = self.widths[1]
        return SVD(
            u.unflatten(1, (-1, k)).contiguous(), s.contiguous(), vh.unflatten(1, (k, -1)).contiguous()
        )

    def _path(self, number: int) -> Path:
        return self.folder / f"factors-{number:05d}.npy"

    def _finite_path(self, number: int) -> Path:
        return self.folder / f"finite-{number:05d}.npy"

    def __getstate__(self) -> dict[str, object]:
        # A memory map sent to a worker process would be sent as its content.
        return self.__dict__ | {"_shards": []}

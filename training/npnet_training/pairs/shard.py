"""One Parquet shard of noise pairs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from npnet_training.errors import DatasetError
from npnet_training.pairs.info import FILE, PairInfo
from npnet_training.storage import Location, open_binary, write_bytes

ROWS_PER_GROUP = 8  # what reading one row at random costs: 1 MB for SDXL
# In a shard's metadata: `PairInfo.identity`, and the shape of its noise where it is not the dataset's first.
DATASET, NOISE = b"npnet.dataset", b"npnet.noise"


@dataclass(frozen=True)
class Pairs:
    """B noise pairs with everything that is known of them.

    Args:
        index: number of each pair in its dataset.
        prompts: B of them.
        seeds: of the source noise.
        target: (B, C, H, W) golden noise; stored as float16.
        kept: whether to train on it.
        decision: why, or why not.
        plain: scores of the images from the source noise, by scorer.
        redenoised: scores of the images from the target.
        source: (B, C, H, W) where it is not `draw_noise(seeds, ...)`; stored as float16.
    """

    index: Sequence[int]
    prompts: Sequence[str]
    seeds: Sequence[int]
    target: Tensor
    kept: Sequence[bool]
    decision: Sequence[str]
    plain: Mapping[str, Sequence[float]]
    redenoised: Mapping[str, Sequence[float]]
    source: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)


def shard_path(folder: Location, number: int) -> Location:
    """Where the shard of that number is."""
    return folder / "data" / f"train-{number:06d}.parquet"


def write_pairs(path: Location, pairs: Pairs, info: PairInfo) -> None:
    """Write a shard of the dataset that `info` describes, whole or not at all, with checksums of its pages.

    Raises:
        DatasetError: it cannot be written.
    """
    width = pairs.target[0].numel()
    noise = pa.list_(pa.float16(), width)
    columns: dict[str, pa.Array] = {
        "index": pa.array(list(pairs.index), pa.int64()),
        "prompt": pa.array(list(pairs.prompts), pa.string()),
        "seed": pa.array(list(pairs.seeds), pa.int64()),
        "source": pa.nulls(len(pairs), noise) if pairs.source is None else _halves(pairs.source),
        "target": _halves(pairs.target),
        "kept": pa.array(list(pairs.kept), pa.bool_()),
        "decision": pa.array(list(pairs.decision), pa.string()),
    }
    for arm, scores in (("plain", pairs.plain), ("redenoised", pairs.redenoised)):
        for name, values in scores.items():
            columns[f"{arm}/{name}"] = pa.array(list(values), pa.float64())
    shape = tuple(pairs.target.shape[1:])
    metadata: dict[bytes, str] = {DATASET: info.identity}
    if shape != tuple(info.latent_shape):
        metadata[NOISE] = ",".join(map(str, shape))
    try:
        buffer = io.BytesIO()
        # Noise cannot be compressed.
        pq.write_table(
            pa.table(columns).replace_schema_metadata(metadata), buffer,
            row_group_size=ROWS_PER_GROUP, compression="none", use_dictionary=False, write_page_checksum=True,
        )  # fmt: skip
        write_bytes(path, buffer.getvalue())
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(
            f"{path}: cannot write the pairs ({error}); make room, then run the same command with --resume"
        ) from error


def open_shard(path: Location) -> pq.ParquetFile:
    """A shard for reading, which raises `OSError` where a page is not what its checksum says.

    Raises:
        DatasetError: missing, truncated, or no shard of noise pairs.
    """
    try:
        source = path if isinstance(path, Path) else open_binary(path)
        file = pq.ParquetFile(source, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from error
    missing = {"index", "prompt", "seed", "source", "target", "kept"} - set(file.schema_arrow.names)
    if missing:
        raise DatasetError(
            f"{path}: no shard of noise pairs: without the columns {', '.join(sorted(missing))}"
        )
    return file


def read_rows(path: Location, info: PairInfo, *, whole: bool = False) -> pa.Table:
    """The columns `prompt`, `seed` and `kept` of a shard of that dataset.

    Args:
        path: of the shard.
        info: of the dataset.
        whole: read the noise as well, to find what is damaged.

    Raises:
        DatasetError: missing, damaged, or of another dataset.
    """
    file = open_shard(path)
    if (file.schema_arrow.metadata or {}).get(DATASET) != info.identity.encode():
        raise DatasetError(
            f"{path}: a shard of another dataset: it was made with other settings, another model or revision "
            f"than {FILE} beside it says; delete it and run npnet-collect with --resume"
        )
    try:
        if whole:
            for group in range(file.num_row_groups):
                file.read_row_group(group)
        return file.read(["prompt", "seed", "kept"])
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from error


def noise_shape(path: Location, table: pa.Table, info: PairInfo) -> tuple[int, int, int]:
    """Shape (C, H, W) of the noise of a shard whose rows were read.

    Raises:
        DatasetError: it says something else.
    """
    found = (table.schema.metadata or {}).get(NOISE)
    if found is None:
        return info.latent_shape
    try:
        channels, height, width = (int(side) for side in found.decode().split(","))
    except ValueError as error:
        raise damaged(path, error) from error
    return channels, height, width


def damaged(path: Location, error: Exception) -> DatasetError:
    """What to raise when a shard cannot be read."""
    return DatasetError(
        f"{path}: truncated or damaged ({error}); delete it and run npnet-collect with --resume"
    )


def _halves(noise: Tensor) -> pa.Array:
    flat = noise.detach().cpu().half().flatten(1).numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(flat).ravel()), flat.shape[1])

import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from npnet_training.errors import DatasetError, StorageError
from npnet_training.pairs import PairDataset, PairInfo, Pairs, write_pairs
from npnet_training.pairs.shard import shard_path
from npnet_training.sampling import draw_noise
from npnet_training.storage import Location, locate

SHAPE = (4, 8, 8)


def write(
    folder: Location,
    count: int = 20,
    per_shard: int = 10,
    *,
    model: str = "m",
    source: bool = False,
    rule: str = "keep all",
) -> torch.Tensor:
    info = PairInfo(model, None, SHAPE, (5, 6), {"rule": rule})
    info.write(folder)
    target = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1)).half()
    for number, start in enumerate(range(0, count, per_shard)):
        rows = range(start, min(start + per_shard, count))
        part = target[rows.start : rows.stop]
        pairs = Pairs(
            index=rows,
            prompts=[f"prompt {row}" for row in rows],
            seeds=[100 + row for row in rows],
            target=part,
            kept=[row % 3 != 0 for row in rows],
            decision=["because"] * len(rows),
            plain={"s": [float(row) for row in rows]},
            redenoised={"s": [row + 0.5 for row in rows]},
            source=-part if source else None,
        )
        write_pairs(shard_path(folder, number), pairs, info)
    return target


def test_reads_what_was_written(tmp_path: Path) -> None:
    target = write(tmp_path / "a")
    pairs = PairDataset.open([tmp_path / "a"], kept_only=False)
    assert len(pairs) == 20
    rows = [19, 0, 7, 7]
    batch = pairs.batch(rows)
    assert batch.prompts == [f"prompt {row}" for row in rows]
    assert (batch.target == target[rows].float()).all()
    assert (batch.source == draw_noise([100 + row for row in rows], SHAPE)).all()
    assert batch.source.dtype == batch.target.dtype == torch.float32


def test_kept_rows_of_several_folders(tmp_path: Path) -> None:
    target = write(tmp_path / "a")
    write(tmp_path / "b", source=True)
    pairs = PairDataset.open([tmp_path / "a", tmp_path / "b"])
    kept = [row for row in range(20) if row % 3]
    assert pairs.seeds == [100 + row for row in kept] * 2
    last = pickle.loads(pickle.dumps(pairs)).batch([len(pairs) - 1])
    assert (last.target[0] == target[kept[-1]].float()).all()
    assert (last.source == -last.target).all()


def test_workers_read_a_url(tmp_path: Path) -> None:
    folder = locate(f"memory://bucket/{tmp_path.name}")
    target = write(folder, source=True)
    pairs = PairDataset.open([str(folder)], kept_only=False)
    assert len(pairs.batch([3]).prompts) == 1  # a file is open when the workers fork
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        batches = pool.map(pairs.batch, [[0, 13], [19, 4]])
        # Not left to terminate: a SIGTERM can be lost where another library has set a handler for it.
        pool.close()
        pool.join()
    assert (torch.cat([batch.target for batch in batches]) == target[[0, 13, 19, 4]].float()).all()
    with pytest.raises(DatasetError, match=r"memory://bucket/none: expected a dataset of noise pairs"):
        PairDataset.open(["memory://bucket/none"])
    with pytest.raises(StorageError, match="Protocol not known: s4"):
        PairDataset.open(["s4://bucket/none"])
    MemoryFileSystem.store.clear()


def test_digest_is_of_content_and_selection(tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 20), ("c", 19)):
        write(tmp_path / name, count)
    digests = [PairDataset.open([tmp_path / name]).info.digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    assert PairDataset.open([tmp_path / "a"], kept_only=False).info.digest != digests[0]


def test_datasets_reads_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    target = write(tmp_path / "a")
    rows = datasets.load_dataset(str(tmp_path / "a"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 20
    assert rows[13]["prompt"] == "prompt 13"
    assert rows[13]["redenoised/s"] == 13.5
    assert np.array_equal(np.float16(rows[13]["target"]), target[13].flatten().numpy())


def test_other_models_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", model="other")
    with pytest.raises(DatasetError, match="its model is other"):
        PairDataset.open([tmp_path / "a", tmp_path / "b"])


def test_damaged(tmp_path: Path) -> None:
    write(tmp_path / "a")
    path = shard_path(tmp_path / "a", 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"train-000001.parquet: truncated or damaged .* --resume"):
        PairDataset.open([tmp_path / "a"])
    with pytest.raises(DatasetError, match="npnet-collect"):
        PairDataset.open([tmp_path / "none"])
    with pytest.raises(DatasetError, match="at least one folder"):
        PairDataset.open([])


def test_a_flipped_bit_of_the_noise(tmp_path: Path) -> None:
    target = write(tmp_path / "a")
    path = shard_path(tmp_path / "a", 1)
    content = bytearray(path.read_bytes())
    content[content.index(target[13].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    pairs = PairDataset.open([tmp_path / "a"], kept_only=False)
    assert (pairs.batch([9]).target == target[[9]].float()).all()
    with pytest.raises(DatasetError, match=r"train-000001.parquet: truncated or damaged .* --resume"):
        pairs.batch([13])


def test_a_flipped_bit_of_a_prompt(tmp_path: Path) -> None:
    write(tmp_path / "a")
    path = shard_path(tmp_path / "a", 1)
    path.write_bytes(path.read_bytes().replace(b"prompt 14", b"prompt 04", 1))
    with pytest.raises(DatasetError, match=r"train-000001.parquet: truncated or damaged .* --resume"):
        PairDataset.open([tmp_path / "a"])


@pytest.mark.parametrize("given", [True, False], ids=["another dataset", "no dataset"])
def test_a_shard_of_another_dataset(tmp_path: Path, given: bool) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", rule="s rises")
    path = shard_path(tmp_path / "a", 1)
    shutil.copy(shard_path(tmp_path / "b", 1), path)
    if not given:
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(DatasetError, match=r"train-000001.parquet: a shard of another dataset: .* --resume"):
        PairDataset.open([tmp_path / "a"])


def test_nothing_kept(tmp_path: Path) -> None:
    write(tmp_path / "a", count=1)
    with pytest.raises(DatasetError, match="of 1 collected none was kept"):
        PairDataset.open([tmp_path / "a"])

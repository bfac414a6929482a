"""Read the public format of the paper's code: one `.npz` for each pair, and a file of JSON lines."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from npnet_runtime.files import atomic_directory
from npnet_training.errors import DatasetError
from npnet_training.pairs.info import PairInfo
from npnet_training.pairs.shard import Pairs, shard_path, write_pairs

ROWS_PER_SHARD = 256


def import_public(
    arrays: Path, lines: Path, output: Path, *, model: str, text_shape: tuple[int, int]
) -> tuple[int, int]:
    """Make a dataset of the public files. A pair is kept when the first score rises, as in the public code.

    Args:
        arrays: folder of `.npz` files: `arr_0` the source, `arr_1` the target, `arr_2` the index.
        lines: one object a line: `index`, `seed`, `caption`, `original_score_list`, `optimized_score_list`.
        output: folder to write; must not exist.
        model: name of the text-to-image model.
        text_shape: (tokens, width) of its prompt embeddings.

    Returns:
        How many pairs, and how many of them are kept.

    Raises:
        DatasetError: a file is missing, malformed, or of other shapes.
        FileExistsError: the output exists.
    """
    described = _read_lines(lines)
    files = sorted(arrays.glob("*.npz"))
    if not files:
        raise DatasetError(f"{arrays}: expected .npz files of noise pairs, found none")
    shape: tuple[int, ...] | None = None
    count = kept = 0
    info: PairInfo | None = None
    with atomic_directory(output) as folder:
        for number, start in enumerate(range(0, len(files), ROWS_PER_SHARD)):
            rows = []
            for path in files[start : start + ROWS_PER_SHARD]:
                source, target, index = _read_arrays(path)
                if shape is None:
                    shape = source.shape
                if source.shape != shape or target.shape != shape or len(shape) != 3:
                    raise DatasetError(
                        f"{path}: expected noise of shape {shape}, given {source.shape} and {target.shape}"
                    )
                if index not in described:
                    raise DatasetError(f"{path}: its index {index} is not in {lines}")
                rows.append((index, described[index], source, target))
            pairs = _pairs(rows)
            if info is None:
                latent = pairs.target.shape[1:]
                info = PairInfo(
                    model, None, (latent[0], latent[1], latent[2]), text_shape, {"imported": True}
                )
                info.write(folder)
            write_pairs(shard_path(folder, number), pairs, info)
            count, kept = count + len(pairs), kept + sum(pairs.kept)
    return count, kept


def _read_lines(path: Path) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                item = json.loads(line)
                try:
                    found[int(item["index"])] = item
                    int(item["seed"]), str(item["caption"])
                except (KeyError, TypeError, ValueError) as error:
                    raise DatasetError(
                        f"{path}:{number}: expected index, seed and caption ({type(error).__name__}: {error})"
                    ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: expected one JSON object a line ({error})") from error
    return found


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    try:
        with np.load(path, allow_pickle=False) as file:
            source, target = (np.squeeze(file[name]) for name in ("arr_0", "arr_1"))
            return source, target, int(np.ravel(file["arr_2"])[0])
    except (OSError, KeyError, ValueError, EOFError, IndexError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: expected arr_0, arr_1 and arr_2 ({error})") from error


def _pairs(rows: list[tuple[int, dict[str, Any], np.ndarray, np.ndarray]]) -> Pairs:
    source = torch.from_numpy(np.stack([row[2] for row in rows]).astype(np.float32))
    target = torch.from_numpy(np.stack([row[3] for row in rows]).astype(np.float32))
    finite = (source.flatten(1).isfinite().all(1) & target.flatten(1).isfinite().all(1)).tolist()
    items = [row[1] for row in rows]
    before, after = (list(_first(items, f"{which}_score_list")) for which in ("original", "optimized"))
    rises = [b < a for b, a in zip(before, after, strict=True)]
    return Pairs(
        index=[row[0] for row in rows],
        prompts=[str(item["caption"]) for item in items],
        seeds=[int(item["seed"]) for item in items],
        source=source,
        target=target,
        kept=[ok and up for ok, up in zip(finite, rises, strict=True)],
        decision=[
            "the score rises" if ok and up else "the score does not rise" if ok else "not finite"
            for ok, up in zip(finite, rises, strict=True)
        ],
        plain={"public": before},
        redenoised={"public": after},
    )


def _first(items: list[dict[str, Any]], name: str) -> Iterator[float]:
    for item in items:
        try:
            yield float(np.ravel(item[name])[0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DatasetError(f"index {item['index']}: expected numbers in {name} ({error})") from error

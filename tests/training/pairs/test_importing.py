import json
from pathlib import Path

import numpy as np
import pytest
import torch

from npnet_training.errors import DatasetError
from npnet_training.pairs import PairDataset
from npnet_training.pairs.importing import import_public


def write_public(folder: Path, count: int = 5) -> tuple[Path, Path]:
    arrays, lines = folder / "npz", folder / "pairs.jsonl"
    arrays.mkdir(parents=True)
    generator = np.random.default_rng(0)
    with lines.open("w") as file:
        for index in range(count):
            noise = generator.standard_normal((2, 1, 4, 8, 8)).astype(np.float32)
            if index == 3:
                noise[1, 0, 0, 0, 0] = np.nan
            np.savez(arrays / f"{index}.npz", noise[0], noise[1], index)
            item = {"index": index, "seed": 10 + index, "caption": f"picture {index}"}
            scores = {"original_score_list": [0.2], "optimized_score_list": [0.1 if index == 1 else 0.3]}
            file.write(json.dumps(item | scores) + "\n")
    return arrays, lines


def test_imports_the_public_format(tmp_path: Path) -> None:
    arrays, lines = write_public(tmp_path)
    assert import_public(arrays, lines, tmp_path / "out", model="sdxl", text_shape=(77, 2048)) == (5, 3)
    pairs = PairDataset.open([tmp_path / "out"])
    assert list(zip(pairs.prompts, pairs.seeds, strict=True)) == [
        ("picture 0", 10),
        ("picture 2", 12),
        ("picture 4", 14),
    ]
    with np.load(arrays / "2.npz") as file:
        batch = pairs.batch([1])
        torch.testing.assert_close(
            batch.source, torch.from_numpy(file["arr_0"]).half().float(), rtol=0, atol=0
        )
        torch.testing.assert_close(
            batch.target, torch.from_numpy(file["arr_1"]).half().float(), rtol=0, atol=0
        )


@pytest.mark.parametrize("broken", ["truncated", "no line", "no score", "no json"])
def test_bad_files_leave_nothing(tmp_path: Path, broken: str) -> None:
    arrays, lines = write_public(tmp_path)
    text = lines.read_text().splitlines()
    if broken == "truncated":
        path = arrays / "4.npz"
        path.write_bytes(path.read_bytes()[:50])
    elif broken == "no line":
        lines.write_text("\n".join(text[:-1]))
    elif broken == "no score":
        lines.write_text("\n".join([*text[:-1], text[-1].replace("optimized", "x")]))
    else:
        lines.write_text("\n".join([*text[:-1], "{"]))
    with pytest.raises(DatasetError, match=r"4.npz|optimized_score_list|JSON"):
        import_public(arrays, lines, tmp_path / "out", model="sdxl", text_shape=(77, 2048))
    assert {path.name for path in tmp_path.iterdir()} == {"npz", "pairs.jsonl"}

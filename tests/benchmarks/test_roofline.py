"""The table of launches: that it has all of them, and that their operations are those of the network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from npnet_runtime.networks.npnet_config import NPNetConfig

COMMAND = Path(__file__).parents[2] / "benchmarks" / "roofline.py"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """In a process of its own: the command switches Triton's interpreter on."""
    folder = tmp_path_factory.mktemp("roofline")
    subprocess.run([sys.executable, str(COMMAND), "--batch", "1", "2", "--output", str(folder)], check=True)
    return json.loads((folder / "roofline.json").read_text())["tables"]


def products(config: NPNetConfig) -> int:
    """Operations of the prompt half, from the sizes of its layers."""
    swin, total = config.swin, 0
    patch = config.latent_channels * swin.patch_size**2
    for stage, depth in enumerate(swin.depths):
        width, tokens = swin.dim(stage), swin.resolution(stage) ** 2
        window = min(swin.window_size, swin.resolution(stage)) ** 2
        block = (4 + 2 * swin.mlp_ratio) * width * width + 2 * window * width
        total += depth * tokens * block
        total += tokens * (2 * width * width if stage else patch * width)
    return 2 * (total + config.text_tokens * config.text_dim * 2 * config.latent_channels)


def test_every_operation_is_counted(tables: list[dict]) -> None:
    for table in tables:
        assert table["flop"] == table["batch"] * products(NPNetConfig())


def test_launches_are_few_and_wide(tables: list[dict]) -> None:
    for table in tables:
        assert table["launches"] == 58
        alone = {row["kernel"] for row in table["rows"] if row["programs"] < 24}
        assert alone <= {"sum_kernel"}  # 20 KB an image: it is its launch that costs


def test_half_precision_moves_less(tables: list[dict]) -> None:
    by_precision = {table["precision"]: table["bytes"] for table in tables if table["batch"] == 1}
    weights = 28e6  # of the products, 4 and 2 bytes each
    assert by_precision["fp32"] - by_precision["fp16"] > 2 * 0.9 * weights

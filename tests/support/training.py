"""Noise pairs of a small pipeline, and settings of a small network to train on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from npnet_training.pairs import PairInfo, Pairs, write_pairs
from npnet_training.pairs.shard import DATASET, ROWS_PER_GROUP, shard_path
from npnet_training.sampling import Denoiser, draw_noise
from npnet_training.training.settings import TrainSettings
from support.pipelines import PIPELINES

COUNT = 96
SMALL: dict[str, Any] = {
    "npnet": {
        "spectral_hidden": 8, "spectral_mlp_hidden": 16, "swin_image_size": 32, "swin_window_size": 2,
        "swin_embed_dim": 8, "swin_depths": [1, 1], "swin_num_heads": [1, 2],
    }
}  # fmt: skip
ATTENTION: dict[str, Any] = {"kind": "prompt-attention", "prompt_attention": {"channels": [8, 16]}}


def write_training_pairs(folder: Path) -> Path:
    """A model, and pairs of it whose target is the noise, stronger and shifted; one is not finite."""
    torch.manual_seed(0)
    pipe = PIPELINES["sdxl"]()
    pipe.save_pretrained(folder / "model")
    denoiser = Denoiser(pipe)
    shape = denoiser.latent_shape
    info = PairInfo(str(folder / "model"), None, shape, denoiser.text_shape, {})
    info.write(folder / "pairs")
    for number in range(COUNT // 32):
        rows = range(32 * number, 32 * number + 32)
        noise = draw_noise(rows, shape)
        target = 1.2 * noise + 0.2
        if number == 0:
            target[5, 0, 0, 0] = torch.nan
        nothing: dict[str, list[float]] = {}
        pairs = Pairs(
            rows, [f"prompt {chr(97 + row % 16)}" for row in rows], list(rows), target, [True] * 32,
            [""] * 32, nothing, nothing,
        )  # fmt: skip
        write_pairs(shard_path(folder / "pairs", number), pairs, info)
    return folder / "pairs"


def relabel(folder: Path, info: PairInfo) -> None:
    """Make a dataset say that it was made with other settings, or of another model."""
    info.write(folder)
    for path in folder.glob("data/*.parquet"):
        table = pq.read_table(path).replace_schema_metadata({DATASET: info.identity})
        pq.write_table(table, path, row_group_size=ROWS_PER_GROUP)


def settings_for(data: Path, output: Path, **changes: Any) -> TrainSettings:
    values = {
        "data": (str(data),), "output": output, "network": SMALL, "batch_size": 16, "epochs": 2,
        "optimizer": {"learning_rate": 3e-3, "ema": 0.9}, "validation": {"share": 0.2},
        "cache_dir": data.parent / "cache",
    }  # fmt: skip
    return TrainSettings.model_validate({**values, **changes})


def launch(module: str, settings: TrainSettings, folder: Path) -> None:
    """Run a command in two processes."""
    config = folder / "train.yaml"
    config.write_text(settings.to_yaml())
    # `accelerate launch --cpu` starts one process, whatever it is told.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", module, "--config", str(config)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def validations(run: Path) -> list[dict[str, float]]:
    history = json.loads((run / "run.json").read_text())["history"]
    return [entry["validation"] for entry in history if "validation" in entry]

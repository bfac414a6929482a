"""Prompts to an engine in a pipeline: the four commands of the training package's README.

On a small SDXL of random weights, and on the embedded model.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow.parquet import read_table

from npnet_export.cli import main as export
from npnet_runtime import GoldenNoise
from npnet_runtime.inputs.texts import Prompt
from npnet_training.collecting.cli import main as collect
from npnet_training.evaluation.cli import main as evaluate
from npnet_training.models import load_pipeline
from npnet_training.sampling import Denoiser, draw_noise
from npnet_training.training.cli import main as train
from support.pipelines import PIPELINES

NPNET = [
    *("--network.npnet.spectral-hidden", "8", "--network.npnet.spectral-mlp-hidden", "16"),
    *("--network.npnet.swin-image-size", "32", "--network.npnet.swin-window-size", "2"),
    *("--network.npnet.swin-embed-dim", "8", "--network.npnet.swin-depths", "1,1"),
    *("--network.npnet.swin-num-heads", "1,2"),
]
ANY_SIZE = ["--network.kind", "prompt-attention-2", "--network.prompt-attention-2.channels", "8,16"]
ATTENTION = ["--network.kind", "prompt-attention", "--network.prompt-attention.channels", "8,16"]


class Brightness:
    """Stands in for a scorer whose weights are on the hub."""

    def __init__(self, **_: object) -> None:
        pass

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        return [float(np.asarray(image, float).mean()) for image in images]


@pytest.mark.parametrize("network", [NPNET, ATTENTION, ANY_SIZE], ids=lambda options: options[1])
def test_prompts_to_an_engine(network: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs, run, engine = (str(tmp_path / name) for name in ("model", "pairs", "run", "engine"))
    torch.manual_seed(0)
    PIPELINES["sdxl"]().save_pretrained(model)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"prompt {chr(97 + number)}" for number in range(16)))
    options = ["--redenoise.steps", "4", "--batch", "8"]
    assert collect(["--model", model, "--prompts", str(prompts), "--output", pairs, *options]) == 0
    options = [
        "--batch-size",
        "4",
        "--epochs",
        "2",
        "--validation.share",
        "0.3",
        "--cache-dir",
        f"{tmp_path}/cache",
    ]
    assert train(["--data", pairs, "--output", run, *options, *network]) == 0
    weights = f"{run}/best.safetensors"
    assert export(["--weights", weights, "--output", engine, "--engine", "torch", "--device", "cpu"]) == 0
    pipe, _ = load_pipeline(model)
    denoiser = Denoiser(pipe)
    noise = draw_noise([1, 2], denoiser.latent_shape)
    prompt = denoiser.prompt(denoiser.encode(["prompt a", "prompt b"]))
    if "prompt-attention-2" not in network:
        prompt = Prompt(prompt.embeds)
    golden = GoldenNoise(engine, device="cpu")(noise, prompt)
    assert golden.shape == noise.shape
    assert golden.isfinite().all()
    assert (golden != noise).any()
    judged = tmp_path / "evaluation"
    options = ["--redenoise.steps", "4", "--sample.steps", "2", "--sample.guidance", "1"]
    options += ["--arms", f"golden:{engine}", "--arms", "redenoised", "--scorers", "clipscore"]
    monkeypatch.setattr("npnet_training.scorers.clip.CLIPScore", Brightness)
    command = ["--model", model, "--prompts", str(prompts), "--output", str(judged), *options]
    assert evaluate(command) == 0
    found = json.loads((judged / "results.json").read_text())["results"]
    assert set(found) == {"plain", f"golden:{engine}", "redenoised"}
    assert found["redenoised"]["scores"]["clipscore"]["pairs"] == 16


def test_prompts_to_a_judgement_of_the_embedded_model(tmp_path: Path) -> None:
    pairs, run, engine, judged = (str(tmp_path / name) for name in ("pairs", "run", "engine", "evaluation"))
    few = ["--sample.steps", "4", "--sample.guidance", "1"]
    options = ["--scorers", "shapes", "--rule", "shapes holds", "--batch", "24", *few]
    assert collect(["--model", "shapes", "--prompts", "shapes:train:48", "--output", pairs, *options]) == 0
    rows = read_table(tmp_path / "pairs" / "data").to_pydict()
    scores = zip(rows["plain/shapes"], rows["redenoised/shapes"], strict=True)
    assert rows["kept"] == [after >= before for before, after in scores]
    assert len(set(rows["plain/shapes"])) > 2
    assert 0 < sum(rows["kept"]) < 48
    options = ["--validation.share", "0.2", "--batch-size", "8", "--epochs", "2", "--optimizer.ema", "0.9"]
    options += ["--cache-dir", f"{tmp_path}/cache", *ATTENTION]
    assert train(["--data", pairs, "--output", run, *options]) == 0
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    assert summary["pairs"]["train"] + summary["pairs"]["validation"] == sum(rows["kept"])
    weights = f"{run}/best.safetensors"
    assert export(["--weights", weights, "--output", engine, "--engine", "torch", "--device", "cpu"]) == 0
    options = ["--arms", f"golden:{engine},redenoised", "--scorers", "shapes,shapes-strict", *few]
    command = ["--model", "shapes", "--prompts", "shapes:held-out:8", "--output", judged, *options]
    assert evaluate(command) == 0
    found = json.loads((tmp_path / "evaluation" / "results.json").read_text())["results"]
    assert set(found) == {"plain", f"golden:{engine}", "redenoised"}
    for arm in (f"golden:{engine}", "redenoised"):
        assert set(found[arm]["scores"]) == {"shapes", "shapes-strict"}
        assert found[arm]["scores"]["shapes"]["pairs"] == 8

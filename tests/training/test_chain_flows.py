"""Prompts to an engine in flow pipelines: collect, train by pairs and by reward, export, attach, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npnet_export.cli import main as export
from npnet_runtime import GoldenNoise
from npnet_training.collecting.cli import main as collect
from npnet_training.evaluation.cli import main as evaluate
from npnet_training.models import load_pipeline
from npnet_training.pairs import PairDataset
from npnet_training.rewards import registry
from npnet_training.training.cli import main as train
from support.flow_pipelines import FLOWS, SIZE

WEIGHTS = {
    "sd3": "guidance",
    "flux-dev": "embedded",
    "flux-schnell": "text-mix",
    "qwen-image": "guidance",
    "z-image": "guidance",
    "sana": "guidance",
    "sana-sprint": None,
}
SIZES = f"{SIZE}x{SIZE},{SIZE}x{SIZE + 32}"
NETWORK = ["--network.kind", "prompt-attention-2", "--network.prompt-attention-2.channels", "16,16"]


@pytest.mark.parametrize("name", WEIGHTS)
def test_prompts_to_an_engine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "redness", "support.rewards:Redness")
    monkeypatch.setattr("npnet_training.scorers.clip.CLIPScore", Brightness)
    model, pairs, run, engine = (str(tmp_path / part) for part in ("model", "pairs", "run", "engine"))
    FLOWS[name]().save_pretrained(model)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"a prompt {'and more ' * (n % 3)}{n}" for n in range(16)))
    options = ["--redenoise.steps", "4", "--batch", "4", "--sizes", SIZES]
    command = ["--model", model, "--prompts", str(prompts), "--output", pairs, *options]
    if WEIGHTS[name] is None:
        assert collect(command) == 2
        assert "train with --loss reward" in capsys.readouterr().err
        command += ["--no-targets"]
    assert collect(command) == 0
    dataset = PairDataset.open([pairs])
    assert len(dataset.shapes) == 2
    recorded = dataset.info.settings["redenoise"].get("weight", "guidance")
    assert recorded == WEIGHTS[name]
    options = ["--batch-size", "4", "--epochs", "1", "--cache-dir", f"{tmp_path}/cache"]
    options += ["--validation.share", "0"]
    if WEIGHTS[name] is not None:
        assert train(["--data", pairs, "--output", run, *options]) == 2
        assert "expected noise of one size, given pairs of 2" in capsys.readouterr().err
    options += NETWORK
    rewards = ["--loss", "reward", "--reward.names", "redness", "--reward.steps", "1"]
    if WEIGHTS[name] is None:
        assert train(["--data", pairs, "--output", run, *options]) == 2
        assert "give --loss reward" in capsys.readouterr().err
    else:
        assert train(["--data", pairs, "--output", f"{run}-mse", *options]) == 0
    assert train(["--data", pairs, "--output", run, *options, *rewards]) == 0
    weights = f"{run}/last.safetensors"
    assert export(["--weights", weights, "--output", engine, "--engine", "torch", "--device", "cpu"]) == 0
    pipe, _ = load_pipeline(model)
    images = {}
    call: dict[str, Any] = {"num_inference_steps": 2, "height": SIZE, "width": SIZE + 32, "prompt": "a cat"}
    if name.startswith("sana"):
        call["use_resolution_binning"] = False  # its list has no size as small
    golden = GoldenNoise(engine, device="cpu")
    for kind in ("plain", "golden"):
        if kind == "golden":
            golden.attach(pipe)
        images[kind] = np.array(pipe(**call, generator=_generator()).images[0]).astype(int)
    assert images["plain"].shape == (SIZE, SIZE + 32, 3)
    assert (images["plain"] != images["golden"]).any()
    judged = tmp_path / "evaluation"
    arms = [f"golden:{engine}"] + (["redenoised"] if WEIGHTS[name] else [])
    options = ["--redenoise.steps", "4", "--sample.steps", "2", "--size", f"{SIZE}x{SIZE + 32}"]
    options += ["--arms", ",".join(arms), "--scorers", "clipscore", "--batch", "8"]
    assert evaluate(["--model", model, "--prompts", str(prompts), "--output", str(judged), *options]) == 0
    found = json.loads((judged / "results.json").read_text())["results"]
    assert set(found) == {"plain", *arms}
    assert found[arms[0]]["scores"]["clipscore"]["pairs"] == 16


def _generator() -> Any:
    import torch

    return torch.Generator().manual_seed(0)


class Brightness:
    """Stands in for a scorer whose weights are on the hub."""

    def __init__(self, **_: object) -> None: ...

    def score(self, prompts: Any, images: Any) -> list[float]:
        return [float(np.asarray(image, float).mean()) for image in images]

"""The recipes for few-step models, each on its family with small random weights: collect, train, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import Qwen3ForCausalLM

from npnet_export.cli import main as export
from npnet_runtime import GoldenLora, GoldenNoise
from npnet_training.collecting.cli import main as collect
from npnet_training.models import load_pipeline
from npnet_training.planning.known import KNOWN
from npnet_training.rewards import registry
from npnet_training.training.cli import main as train
from support.flow_pipelines import OPTIONS, SIZE, flux, flux2_klein, qwen3, sana_sprint, z_image
from support.pipelines import sdxl, stable_diffusion

RECIPES = Path(__file__).parents[2] / "training" / "recipes" / "few-step"


def klein() -> Any:
    """With as many layers in its text encoder as the pipeline reads by default."""
    pipe = flux2_klein()
    shapes = {**pipe.transformer.config, "joint_attention_dim": 48}  # three layers, 16 wide
    pipe.register_modules(
        text_encoder=qwen3(Qwen3ForCausalLM, layers=28),
        transformer=type(pipe.transformer).from_config(shapes).eval(),
    )
    return pipe


FAMILIES: dict[str, tuple[Any, str]] = {
    "sana-sprint": (sana_sprint, "sana-sprint"),
    "sd-turbo": (stable_diffusion, ""),
    "sdxl-turbo": (sdxl, ""),
    "flux.1-schnell": (lambda: flux(guidance=False), "flux-schnell"),
    "flux.2-klein": (klein, "z-image"),
    "z-image-turbo": (z_image, "z-image"),
}


def test_there_is_one_for_each_model() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(FAMILIES) <= set(KNOWN)


@pytest.mark.parametrize("name", FAMILIES)
def test_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "redness", "support.rewards:Redness")
    make, family = FAMILIES[name]
    model, pairs, run = (str(tmp_path / part) for part in ("model", "pairs", "run"))
    make().save_pretrained(model)
    (tmp_path / "prompts.txt").write_text("\n".join(f"a prompt {n}" for n in range(8)))
    sizes = ["--sizes", f"{SIZE}x{SIZE}"] if family else []
    command = ["--model", model, "--prompts", str(tmp_path / "prompts.txt"), "--output", pairs, *sizes]
    assert collect([*command, "--batch", "4", "--no-targets"]) == 0
    recipe = RECIPES / f"{name}.yaml"
    kind = yaml.safe_load(recipe.read_text())["network"]["kind"]
    small = ["--network.generator-lora.rank", "2", "--network.prompt-attention-2.channels", "16,16"]
    small += ["--reward.names", "redness", "--reward.weights", "1", "--reward.dtype", "float32"]
    small += ["--batch-size", "4", "--accumulation", "2", "--max-steps", "1", "--validation.share", "0"]
    files = ["--data", pairs, "--output", run, "--cache-dir", str(tmp_path / "cache")]
    assert train(["--config", str(recipe), *files, *small]) == 0
    golden: GoldenLora | GoldenNoise
    if kind == "generator-lora":
        golden = GoldenLora(run)
    else:
        engine = str(tmp_path / "engine")
        weights = f"{run}/last.safetensors"
        assert export(["--weights", weights, "--output", engine, "--engine", "torch", "--device", "cpu"]) == 0
        golden = GoldenNoise(engine, device="cpu")
    pipe, _ = load_pipeline(model)
    golden.attach(pipe)
    sized = {"height": SIZE, "width": SIZE} if family else {}
    call = {**sized, **OPTIONS.get(family, {}), "num_inference_steps": 2}
    assert pipe(prompt="a cat", generator=torch.Generator().manual_seed(0), **call).images

"""From a built model to the embedded one: a few-step LoRA, networks, the second judge, the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.npnet_config import NPNetConfig, SwinConfig
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.weights import checkpoint
from npnet_training import bundle, distill
from npnet_training.demo.checks import RESULTS
from npnet_training.demo.cli import main as npnet_demo
from npnet_training.embedded import SCENES, AssetsError
from npnet_training.scenes.networks import TOKENS, WIDTH
from npnet_training.scenes.second_judge import FILE, Eyes
from support.damage import alter

SWIN = SwinConfig(image_size=16, patch_size=4, window_size=2, embed_dim=8, depths=(2,), num_heads=(2,))
CONFIGS = {
    "npnet": NPNetConfig(16, 8, 8, TOKENS, WIDTH, spectral_hidden=8, spectral_mlp_hidden=8, swin=SWIN),
    "prompt-attention": AnySizeConfig(
        16, 8, 8, TOKENS, WIDTH, 4, 16, TOKENS, pooled_dim=64, channels=(8,), heads=2
    ),
}
DISTILLED = ["--prompts", "scenes:train:4:1", "--steps", "2", "--teacher-steps", "4", "--rank", "2"]
DISTILLED += ["--trajectories", "4", "--train-steps", "3", "--learning-rate", "0.01"]


@pytest.fixture(scope="session")
def parts(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    assert distill.main(["--model", str(built), "--output", str(folder / "few-step"), *DISTILLED]) == 0
    for name, config in CONFIGS.items():
        checkpoint.write(folder / "networks" / f"{name}.safetensors", random_state(config, 0), config)
    torch.manual_seed(0)
    save_file({name: value.half() for name, value in Eyes().state_dict().items()}, folder / FILE)
    return folder


def options(built: Path, parts: Path, output: Path) -> list[str]:
    return [
        "--world", "scenes", "--model", str(built), "--few-step", str(parts / "few-step"), "--second-judge",
        str(parts / FILE), "--networks", str(parts / "networks"), "--output", str(output), "--judged", "3",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def bundled(built: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundled") / "assets"
    assert bundle.main(options(built, parts, output)) == 0
    return output


def test_everything_is_listed_and_nothing_else(bundled: Path) -> None:
    files = SCENES.check(bundled, SCENES.denoisers)["files"]
    assert {FILE, "golden/npnet.safetensors", "few-step/pytorch_lora_weights.safetensors"} <= set(files)
    assert not any("checkpoints" in name for name in files)
    golden = json.loads((bundled / "metrics.json").read_text())["golden"]
    for network in CONFIGS:
        assert {name: found["prompts"] for name, found in golden[network].items()} == {
            "main": 3, "few-step": 3,
        }  # fmt: skip


def test_the_few_step_denoiser_is_the_main_one_with_its_lora(bundled: Path) -> None:
    main, few = (SCENES.load(name, folder=bundled).transformer for name in ("main", "few-step"))
    lora = {}
    for name, value in main.state_dict().items():
        lora[name] = few.state_dict()[name] - value
    weight = "single_transformer_blocks.0.proj_mlp.weight"
    assert 1 <= torch.linalg.matrix_rank(lora[weight].double(), rtol=1e-4) <= 2
    assert torch.count_nonzero(lora["single_transformer_blocks.0.proj_mlp.bias"]) == 0


def test_an_altered_lora_is_not_loaded(bundled: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(bundled, folder)
    alter(folder / "few-step" / "pytorch_lora_weights.safetensors")
    with pytest.raises(AssetsError, match="was altered"):
        SCENES.load("few-step", folder=folder)


def test_parts_of_the_other_world_are_refused(
    built: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "assets"
    given = options(built, parts, output)
    assert bundle.main([*given[:4], *given[8:]]) == 2
    assert "expected both with --world scenes" in capsys.readouterr().err
    networks = tmp_path / "networks"
    wrong = NPNetConfig(4, 16, 16, TOKENS, WIDTH, spectral_hidden=8, spectral_mlp_hidden=8, swin=SWIN)
    checkpoint.write(networks / "npnet.safetensors", random_state(wrong, 0), wrong)
    assert bundle.main([*given, "--networks", str(networks)]) == 2
    assert "latents (16, 8, 8)" in capsys.readouterr().err.replace("\n", " ")
    assert not output.exists()


@pytest.mark.parametrize("network", CONFIGS)
def test_the_demo_shows_it(
    network: str, bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    given = ["--world", "scenes", "--model-dir", str(bundled), "--output", str(output), "--prompts", "3"]
    quick = ["--model", "both", "--resamples", "200", "--engine", "torch", "--network", network]
    assert npnet_demo([*given, *quick]) == 0
    found = json.loads((output / RESULTS).read_text())
    assert {name: entry["steps"] for name, entry in found["denoisers"].items()} == {"main": 10, "few-step": 4}
    assert {path.name for path in output.glob("*.png")} == {"grid-main.png", "grid-few-step.png"}
    facts = {name for row in found["images"] for name in row["facts"]}
    assert any(name.endswith(" there") for name in facts)
    assert "golden noise takes" in capsys.readouterr().out


def test_models_of_the_other_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "out")]
    assert npnet_demo(["--world", "scenes", "--model", "weak", *output]) == 2
    assert "expected main, few-step or both" in capsys.readouterr().err
    assert npnet_demo(["--world", "shapes", "--model", "few-step", *output]) == 2
    assert "expected main, weak or both" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

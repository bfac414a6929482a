"""Estimates for GPUs that are not here: counted, not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from npnet_training.collecting.cli import main as collect
from npnet_training.errors import ModelError, SettingsError
from npnet_training.planning import __main__ as command
from npnet_training.planning.calls import denoiser_call
from npnet_training.planning.counting import count, parameters_of
from npnet_training.planning.estimates import (
    Rendering,
    describe_memory,
    lora_weights,
    plan_collection,
    plan_memory,
)
from npnet_training.planning.gpus import GPUS, UTILISATION, get_gpu
from npnet_training.planning.known import KNOWN
from npnet_training.planning.parts import Parts, parts_of
from npnet_training.sampling import RedenoiseSettings, SampleSettings
from npnet_training.training.cli import main as train
from support.flow_pipelines import flux, lumina2
from support.training import write_training_pairs

BILLIONS = {
    "sdxl": 2.567, "sdxl-turbo": 2.567, "sd-turbo": 0.866, "flux.1-dev": 11.90, "flux.1-schnell": 11.89,
    "flux.2-klein": 3.88, "z-image": 6.15, "z-image-turbo": 6.15, "sana-sprint": 0.59,
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "flux"
    flux().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", KNOWN)
def test_sizes_are_the_published_ones(name: str) -> None:
    parts = parts_of(name)
    assert parameters_of(parts.denoiser) / 1e9 == pytest.approx(BILLIONS[name], abs=0.006)
    assert all(parameter.is_meta for parameter in parts.denoiser.parameters())


def test_what_is_counted_is_what_runs(small: Path) -> None:
    """On `meta` as with real tensors; the operations are those that PyTorch's own counter counts."""
    parts = parts_of(str(small), (64, 64))
    found = count(parts.denoiser, denoiser_call(parts))
    real = flux().transformer.to(torch.bfloat16).requires_grad_(False)
    arguments = {
        "hidden_states": torch.randn(1, 16, 64, dtype=torch.bfloat16, requires_grad=True),
        "encoder_hidden_states": torch.randn(1, 512, 32, dtype=torch.bfloat16),
        "pooled_projections": torch.randn(1, 32, dtype=torch.bfloat16),
        "timestep": torch.ones(1, dtype=torch.bfloat16),
        "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(512, 3), "guidance": torch.ones(1),
    }  # fmt: skip
    with FlopCounterMode(display=False) as flops:
        denoiser_call(parts)()
    assert found.flops == pytest.approx(flops.get_total_flops(), rel=1e-6)
    again = count(real, lambda: real(**arguments))
    assert again.whole == pytest.approx(found.whole, rel=0.01)  # ids and guidance are float32 here
    assert parts.text_parameters == sum(
        parameters_of(encoder) for encoder in (flux().text_encoder, flux().text_encoder_2)
    )


def test_checkpointing_keeps_less(small: Path) -> None:
    parts = parts_of(str(small), (256, 256))
    found = count(
        parts.denoiser, denoiser_call(parts), ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    )
    assert set(found.inputs) == {"transformer_blocks.0", "single_transformer_blocks.0"}
    assert found.checkpointed < found.whole
    assert found.saved["transformer_blocks.0"] > found.inputs["transformer_blocks.0"] > 0


def test_a_pair_is_so_many_evaluations() -> None:
    gpu, mixed = get_gpu("h100"), parts_of("sdxl")
    bare = plan_collection(mixed, 1000, gpu, RedenoiseSettings(), None)
    assert (bare.evaluations, bare.decoded) == (3, 0)  # two predictions up, one down
    scored = plan_collection(mixed, 1000, gpu, RedenoiseSettings(), SampleSettings(steps=20))
    assert (scored.evaluations, scored.decoded) == (3 + 2 * 20 * 2, 2)
    unguided = SampleSettings(steps=20, guidance=1.0)
    assert plan_collection(mixed, 1000, gpu, None, unguided).evaluations == 40
    assert scored.gpu_hours == pytest.approx(1000 * scored.tflops / (UTILISATION * gpu.peak) / 3600)
    assert scored.megabytes == pytest.approx(1000 * 2 * 4 * 128 * 128 / 1e6)
    embedded = plan_collection(parts_of("flux.1-dev"), 10, gpu, RedenoiseSettings(), SampleSettings(steps=28))
    assert embedded.evaluations == 2 + 56


def test_memory_says_what_to_change() -> None:
    how = Rendering(1, 1.0, None, True, 2)
    sprint = parts_of("sana-sprint")
    fits = plan_memory(sprint, how, 1, get_gpu("rtx4090"), 2_000_000)
    assert "it fits" in describe_memory(fits, sprint)
    many = plan_memory(sprint, how, 64, get_gpu("rtx4090"), 2_000_000)
    assert 0 < many.most_images < 64
    assert f"{many.most_images} images at once fit: raise --accumulation" in describe_memory(many, sprint)
    whole = Rendering(1, 1.0, None, False, 4)
    assert plan_memory(sprint, whole, 1, get_gpu("rtx4090"), 0).total > fits.total
    schnell = parts_of("flux.1-schnell")
    small = plan_memory(schnell, how, 1, get_gpu("rtx4090"), 0, lora_rank=128)
    assert small.most_images == 0
    assert "it does NOT fit; give --reward.dtype bfloat16" in describe_memory(small, schnell)
    assert 0.4e9 < lora_weights(schnell, 128) < 1.2e9


def test_another_denoiser_is_refused(tmp_path: Path) -> None:
    lumina2().save_pretrained(tmp_path / "lumina")
    parts: Parts = parts_of(str(tmp_path / "lumina"))
    with pytest.raises(ModelError, match="there is no estimate for Lumina2Transformer2DModel, only for"):
        denoiser_call(parts)
    with pytest.raises(ModelError, match="expected one of sdxl"):
        parts_of(str(tmp_path / "nothing"))
    with pytest.raises(SettingsError, match="--gpu tpu: expected one of"):
        get_gpu("tpu")
    assert all(gpu.memory > 0 and gpu.peak > 0 for gpu in GPUS.values())


def test_collect_dry_run_for_a_gpu(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    common = ["--prompts", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "pairs"), "--seeds", "2"]
    assert collect(["--model", str(small), *common, "--sizes", "64x64", "--gpu", "h100", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("ESTIMATE, nothing was run: 6 pairs")
    assert collect(["--model", "z-image", *common, "--gpu", "h100", "--dry-run"]) == 0
    assert not (tmp_path / "pairs").exists()
    assert collect(["--model", "z-image", *common, "--gpu", "h100"]) == 2
    assert "add --dry-run" in capsys.readouterr().err


def test_train_dry_run_for_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_training_pairs(tmp_path)
    reward = ["--loss", "reward", "--reward.names", "clipscore", "--reward.dtype", "bfloat16"]
    reward += ["--reward.steps", "1"]
    options = ["--data", str(data), "--output", str(tmp_path / "run"), *reward, "--gpu", "h100", "--dry-run"]
    lora = ["--network.kind", "generator-lora", "--model", "flux.1-schnell", "--batch-size", "1"]
    assert train([*options, *lora]) == 0
    told = capsys.readouterr().out
    assert "ESTIMATE, nothing was run: memory of one process on h100, with flux.1-schnell" in told
    assert not (tmp_path / "run").exists()
    assert train(["--data", str(data), "--output", str(tmp_path / "run"), "--gpu", "h100", "--dry-run"]) == 2
    assert "a loss that makes images" in capsys.readouterr().err


def test_the_table_of_the_document_is_the_file_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[3] / "training"
    stored: dict[str, Any] = json.loads((root / "results" / "costs.json").read_text())
    assert command.main(["--output", str(tmp_path / "costs.json"), "--pairs", "100000"]) == 0
    made = json.loads((tmp_path / "costs.json").read_text())
    assert made["rows"] == stored["rows"]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "\n".join(table) in (root / "models.md").read_text()

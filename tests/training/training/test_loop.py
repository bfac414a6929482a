import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from npnet_runtime.weights import checkpoint
from npnet_training.errors import SettingsError, TrainError
from npnet_training.training.cli import main
from npnet_training.training.loop import train
from support.training import ATTENTION, COUNT, launch, settings_for, validations


def test_learns_far_more_than_the_identity(data: Path, tmp_path: Path) -> None:
    summary = train(settings_for(data, tmp_path / "run", epochs=40))
    assert summary["pairs"]["quarantined"] == 1
    assert summary["last"]["mse"] < 0.4 * summary["last"]["identity"]
    assert summary["best_validation_loss"] <= summary["last"]["loss"]
    assert summary["last"]["loss"] == pytest.approx(summary["last"]["mse"])
    read = checkpoint.read(tmp_path / "run" / "best.safetensors")
    assert read.config.latent_shape == (4, 16, 16)
    found = summary["report"]["explained"]
    assert found["whole"] == pytest.approx(summary["last"]["explained"], abs=1e-3)
    assert set(found) == {"whole", "prompts of others", "spectral only", "residual only", "text off"}
    assert max(found["spectral only"], found["residual only"]) < found["whole"]
    noise, target = summary["report"]["noise"], summary["report"]["target"]
    assert target["std"] == pytest.approx(1.2, rel=0.1)
    assert noise["change"] < 2 * target["change"]
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log == summary["history"] == json.loads((tmp_path / "run" / "run.json").read_text())["history"]


def test_prompt_attention_learns_without_an_svd(data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"network": ATTENTION, "cache_dir": tmp_path / "cache"}
    settings = settings_for(data, tmp_path / "run", epochs=20, **changes)
    summary = train(settings)
    assert summary["last"]["mse"] < 0.4 * summary["last"]["identity"]
    assert set(summary["report"]["explained"]) == {"whole", "prompts of others"}
    assert not list((tmp_path / "cache").rglob("factors-*.npy"))
    read = checkpoint.read(tmp_path / "run" / "best.safetensors")
    assert read.config.kind == "prompt-attention"
    again = {"start_from": str(tmp_path / "run" / "best.safetensors"), "max_steps": 1}
    train(settings_for(data, tmp_path / "more", **changes, **again))
    with pytest.raises(TrainError, match=r"expected a network of kind npnet, given one of kind prompt-att"):
        train(settings_for(data, tmp_path / "other", **again))
    for wrong in ({"sign_augmentation": True}, {"freeze": ["text"]}):
        with pytest.raises((SettingsError, ValueError), match="kind"):
            train(settings_for(data, tmp_path / "wrong", **changes, **wrong))


def test_validation_prompts_are_never_trained_on(data: Path, tmp_path: Path) -> None:
    from accelerate import Accelerator

    from npnet_training.training.data import open_data

    found = open_data(settings_for(data, tmp_path / "run"), Accelerator())
    prompts = [{found.pairs.prompts[row] for row in rows} for rows in (found.train, found.validation)]
    assert all(prompts)
    assert not prompts[0] & prompts[1]
    assert len(found.train) + len(found.validation) == COUNT - 1


def test_accumulation_changes_nothing_but_rounding(data: Path, tmp_path: Path) -> None:
    for name, accumulation in (("one", 1), ("four", 4)):
        train(settings_for(data, tmp_path / name, accumulation=accumulation))
    one, four = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "four"))
    for key in one:
        torch.testing.assert_close(four[key], one[key], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_cached_factors_are_those_computed_in_every_batch(data: Path, tmp_path: Path, loss: str) -> None:
    losses = []
    for cached in (True, False):
        run = train(settings_for(data, tmp_path / str(cached), cache_svd=cached, loss=loss, max_steps=4))
        losses.append([entry["loss"] for entry in run["history"] if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("module", ["npnet_training.training.cli", "support.sharded_training"])
def test_two_processes_train_what_one_does(data: Path, tmp_path: Path, module: str) -> None:
    """The second shards weights, their average and the moments of the optimizer."""
    options: dict[str, Any] = {
        "accumulation": 2, "max_steps": 6,
        # a validation without a checkpoint after it
        "validation": {"share": 0.2, "every": 1, "min_improvement": 0.9},
        "optimizer": {"learning_rate": 3e-3, "ema": 0.9, "clip": 0.01},
    }  # fmt: skip
    launch(module, settings_for(data, tmp_path / "two", **options | {"max_steps": 4}), tmp_path)
    launch(module, settings_for(data, tmp_path / "two", resume=True, **options), tmp_path)
    train(settings_for(data, tmp_path / "one", **options))
    for one, two in zip(*(validations(tmp_path / run) for run in ("one", "two")), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    for name in ("best.safetensors", "last.safetensors", "state-00000006/tensors.safetensors"):
        one, two = (load_file(tmp_path / run / name) for run in ("one", "two"))
        assert {key: value.shape for key, value in one.items()} == {k: v.shape for k, v in two.items()}
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-4)


def test_checkpoints_hold_the_average(data: Path, tmp_path: Path) -> None:
    train(settings_for(data, tmp_path / "run", max_steps=4))
    written = load_file(tmp_path / "run" / "last.safetensors")
    state = load_file(tmp_path / "run" / "state-00000004" / "tensors.safetensors")
    for name, value in written.items():
        torch.testing.assert_close(value, state[f"average.{name}"].reshape(value.shape), rtol=0, atol=0)
    assert (written["alpha"] - state["weights.alpha"]).abs() > 1e-4


def test_starts_from_a_checkpoint(data: Path, tmp_path: Path) -> None:
    first = train(settings_for(data, tmp_path / "first", epochs=10))
    start = str(tmp_path / "first" / "last.safetensors")
    second = train(settings_for(data, tmp_path / "second", start_from=start, max_steps=1))
    assert first["last"]["mse"] < 0.1 * first["last"]["identity"]
    assert second["last"]["mse"] < 0.1 * first["last"]["identity"]
    with pytest.raises(TrainError, match="--start-from"):
        train(settings_for(data, tmp_path / "third", start_from=str(tmp_path / "none.safetensors")))


def test_frozen_branches_stay(data: Path, tmp_path: Path) -> None:
    train(settings_for(data, tmp_path / "run", freeze=("spectral", "text"), max_steps=3))
    state = checkpoint.read(tmp_path / "run" / "last.safetensors").state
    assert state["alpha"] == 0
    assert state["beta"] != 0
    with pytest.raises(SettingsError, match="nothing is left to train"):
        train(settings_for(data, tmp_path / "none", freeze=("spectral", "residual", "text")))


class TestCommand:
    def test_errors(self, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run = ["--output", str(tmp_path / "run")]
        assert main(["--data", str(tmp_path / "none"), *run]) == 2
        assert "npnet-collect" in capsys.readouterr().err
        cache = ["--cache-dir", str(data.parent / "cache")]
        assert main(["--data", str(data), *run, *cache, "--batch-size", "500"]) == 2
        assert "--batch-size: expected at most the" in capsys.readouterr().err

    @pytest.mark.parametrize("given", ["fp16", "bf16"])
    def test_precision_of_accelerate_launch(
        self, given: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", given)
        command = ["--data", str(data), "--output", str(tmp_path / "run")]
        assert main(command) == 2
        expected = f"--mixed_precision {given}: expected no or the run's --precision, given fp32; give acc"
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        train(settings_for(data, tmp_path / "run", precision="bf16", max_steps=1))

    def test_dry_run(self, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = tmp_path / "train.yaml"
        config.write_text(settings_for(data, tmp_path / "run").to_yaml())
        assert main(["--config", str(config), "--dry-run"]) == 0
        assert "96 pairs of" in capsys.readouterr().out
        assert not (tmp_path / "run").exists()

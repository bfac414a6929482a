"""Runs that are killed, stopped early or cannot write, and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from npnet_runtime.errors import CheckpointError
from npnet_runtime.golden_statistics import STATISTICS
from npnet_training.errors import TrainError
from npnet_training.training.loop import train
from npnet_training.training.progress import Progress, RunLog
from support.training import SMALL, launch, settings_for


def test_resumed_run_is_the_same_to_the_bit(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"validation": {"share": 0.2, "every": 2}, "sign_augmentation": True}
    train(settings_for(data, tmp_path / "whole", **options))
    train(settings_for(data, tmp_path / "cut", max_steps=3, **options))
    train(settings_for(data, tmp_path / "cut", resume=True, **options))
    for name in ("best.safetensors", "last.safetensors"):
        whole, cut = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_killed_run_ends_as_an_undisturbed_one(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "epochs": 8, "validation": {"share": 0.2, "every": 3}, "sign_augmentation": True,
        "log_every": 1, "save_every": 8,
    }  # fmt: skip
    whole = train(settings_for(data, tmp_path / "whole", **options))
    cut, config = tmp_path / "cut", tmp_path / "train.yaml"
    config.write_text(settings_for(data, cut, **options).to_yaml())
    command = [sys.executable, "-m", "npnet_training.training.cli", "--config", str(config)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        until, log = time.monotonic() + 240, cut / "log.jsonl"
        # two steps after a state, six before the next
        while not (log.exists() and '"step": 10' in log.read_text()):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(cut.glob("state-*"))
    assert not (cut / "run.json").exists()
    resumed = train(settings_for(data, cut, resume=True, **options))
    for name in ("best.safetensors", "last.safetensors"):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [line["step"] for line in resumed["history"]] == [line["step"] for line in whole["history"]]
    assert [json.loads(line) for line in log.read_text().splitlines()] == resumed["history"]
    for run, summary in ((tmp_path / "whole", whole), (cut, resumed)):
        assert_events(run / "tensorboard", summary["history"])


def assert_events(folder: Path, history: list[dict[str, Any]]) -> None:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    names = {
        "train": ("loss", "pairs_per_second", "learning_rate"),
        "validation": ("loss", "mse", "identity", "explained", *STATISTICS),
    }
    assert set(events.Tags()["scalars"]) == {f"{part}/{name}" for part in names for name in names[part]}
    for part in names:
        entries = [entry for entry in history if ("validation" in entry) == (part == "validation")]
        for name in names[part]:
            found = events.Scalars(f"{part}/{name}")
            assert [event.step for event in found] == [entry["step"] for entry in entries]
            expected = [entry.get("validation", entry)[name] for entry in entries]
            assert [event.value for event in found] == pytest.approx(expected, rel=1e-6)


def test_killed_before_its_first_state(data: Path, tmp_path: Path) -> None:
    log = tmp_path / "run" / "log.jsonl"
    log.parent.mkdir()
    log.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    summary = train(settings_for(data, tmp_path / "run", resume=True, max_steps=2, log_every=1))
    assert [json.loads(line) for line in log.read_text().splitlines()] == summary["history"]


def test_early_stopping(data: Path, tmp_path: Path) -> None:
    validation = {"share": 0.2, "every": 1, "patience": 2, "min_improvement": 0.9}
    found = train(settings_for(data, tmp_path / "run", validation=validation))
    assert found["steps"] == 3
    weights = (tmp_path / "run" / "last.safetensors").read_bytes()
    entries: list[dict[str, Any]] = []
    again = train(settings_for(data, tmp_path / "run", validation=validation, resume=True), entries.append)
    assert not entries
    for name in ("steps", "last", "history", "best_validation_loss", "report"):
        assert again[name] == found[name]
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == weights


def test_nothing_is_lost_when_results_cannot_be_written(data: Path, tmp_path: Path) -> None:
    run, options = tmp_path / "run", {"max_steps": 2, "resume": True}
    train(settings_for(data, tmp_path / "whole", **options))
    for name in ("last.safetensors", "curves.png", "run.json"):
        (run / name / "in the way").mkdir(parents=True)
        with pytest.raises((OSError, CheckpointError), match=name):
            train(settings_for(data, run, **options))
        shutil.rmtree(run / name)
        assert not list(run.glob(".*"))
    entries: list[dict[str, Any]] = []
    train(settings_for(data, run, **options), entries.append)
    assert not entries
    assert (run / "last.safetensors").read_bytes() == (tmp_path / "whole" / "last.safetensors").read_bytes()


def test_only_the_same_run_is_resumed(data: Path, tmp_path: Path) -> None:
    train(settings_for(data, tmp_path / "run", max_steps=1))
    with pytest.raises(TrainError, match="is not empty: go on with --resume"):
        train(settings_for(data, tmp_path / "run"))
    with pytest.raises(TrainError, match=r"(?s)of another run:.*batch_size: expected 16, given 8"):
        train(settings_for(data, tmp_path / "run", resume=True, batch_size=8))
    other = {"npnet": {**SMALL["npnet"], "spectral_hidden": 16}}
    with pytest.raises(TrainError, match=r"(?s)of another run:.*spectral_hidden: expected 8, given 16"):
        train(settings_for(data, tmp_path / "run", resume=True, network=other))
    state = next((tmp_path / "run").glob("state-*")) / "tensors.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(TrainError, match="damaged training state"):
        train(settings_for(data, tmp_path / "run", resume=True))


def test_events_of_a_resumed_run_are_read_after_those_of_the_killed_one(tmp_path: Path) -> None:
    """Also where it is resumed within the second: TensorBoard would else forget the steps that came later."""
    for first in (0, 8):
        log = RunLog(tmp_path, Progress(step=first), lambda entry: None)
        for step in range(first + 1, first + 11):
            log.write({"step": step, "loss": 1.0})
        log.close()
    assert_events_of(tmp_path / "tensorboard", "train/loss", list(range(1, 19)))


def assert_events_of(folder: Path, name: str, steps: list[int]) -> None:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars(name)] == steps


@pytest.mark.slow
def test_begun_on_two_processes_and_ended_on_one(data: Path, tmp_path: Path) -> None:
    """Batches, and so the weights but for the order of sums, do not depend on the number of processes."""
    options = {"epochs": 1, "max_steps": 4, "batch_size": 8, "stream": 1}
    train(settings_for(data, tmp_path / "one", **options))
    first = settings_for(data, tmp_path / "two", **options | {"max_steps": 2})
    launch("npnet_training.training.cli", first, tmp_path)
    train(settings_for(data, tmp_path / "two", resume=True, **options))
    one, two = (load_file(tmp_path / run / "last.safetensors") for run in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-3)


def test_a_run_begun_before_there_were_some_settings(data: Path, tmp_path: Path) -> None:
    train(settings_for(data, tmp_path / "run", max_steps=2))
    state = next((tmp_path / "run").glob("state-*/state.json"))
    content = json.loads(state.read_text())
    settings = content["identity"]["settings"]
    for name in ("model", "text", "stream"):
        del settings[name]
    del settings["network"]["generator_lora"]
    del settings["reward"]["of_models"]
    state.write_text(json.dumps(content))
    train(settings_for(data, tmp_path / "run", max_steps=3, resume=True))
    settings["seed"] = 9
    state = next((tmp_path / "run").glob("state-*/state.json"))
    state.write_text(json.dumps(json.loads(state.read_text()) | {"identity": content["identity"]}))
    with pytest.raises(TrainError, match="seed: expected 9, given 0"):
        train(settings_for(data, tmp_path / "run", max_steps=4, resume=True))

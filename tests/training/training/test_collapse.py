"""Pairs whose targets are independent of their sources end in a refusal, at every step of the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from npnet_export.cli import main as export
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.errors import BundleError
from npnet_training.errors import TrainError
from npnet_training.pairs import PairDataset
from npnet_training.pairs.shard import Pairs, shard_path, write_pairs
from npnet_training.sampling import draw_noise
from npnet_training.training.cli import main as train
from npnet_training.training.collapse import judge
from npnet_training.training.progress import Progress

NETWORK = ["--network.kind", "prompt-attention", "--network.prompt-attention.channels", "8,8"]


@pytest.fixture(scope="module")
def independent(data: Path) -> Path:
    """The pairs of `data`, with other noise for targets: each the good seed of another pair."""
    info = PairDataset.open([data]).info
    folder = data.with_name("independent")
    info.write(folder)
    for number in range(2):
        rows = range(32 * number, 32 * number + 32)
        target = draw_noise([10_000 + row for row in rows], info.latent_shape)
        prompts = [f"prompt {chr(97 + row % 16)}" for row in rows]
        pairs = Pairs(rows, prompts, list(rows), target, [True] * 32, [""] * 32, {}, {})
        write_pairs(shard_path(folder, number), pairs, info)
    return folder


def test_from_pairs_to_an_engine(
    independent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["--batch-size", "16", "--epochs", "6", "--cache-dir", str(tmp_path / "cache"), *NETWORK]
    options += ["--optimizer.learning-rate", "0.02", "--validation.share", "0.3"]
    command = ["--data", str(independent), "--output", str(run), *options]
    assert train(command) == 2
    said = capsys.readouterr().err
    assert "the targets of these pairs do not depend on their sources" in said
    assert "--allow-collapse" in said
    assert train([*command, "--allow-collapse"]) == 1
    said = capsys.readouterr().err
    assert "golden noise has collapsed: its norm is 0." in said
    assert "npnet-export will refuse it" in said
    summary = json.loads((run / "run.json").read_text())
    assert summary["collapsed"]
    assert summary["last"]["norm_ratio"] < 0.5
    assert any("collapsed" in entry for entry in summary["history"])
    engine = tmp_path / "engine"
    weights = ["--weights", str(run / "last.safetensors"), "--engine", "torch", "--device", "cpu"]
    command = [*weights, "--output", str(engine)]
    assert export(command) == 1
    assert "golden noise of these weights has collapsed" in capsys.readouterr().err
    assert not engine.exists()
    assert export([*command, "--allow-collapse"]) == 0
    statistics = EngineBundle.open(engine).manifest.statistics
    assert statistics is not None
    assert statistics["norm_ratio"] < 0.5
    report = GoldenNoise(engine, device="cpu").report()
    assert f"norm ratio {statistics['norm_ratio']:.2f}" in report
    assert "COLLAPSED: its norm is" in report
    manifest = json.loads((engine / "manifest.json").read_text())
    manifest["statistics"]["std"] = "much"
    (engine / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="statistics: expected finite numbers"):
        EngineBundle.open(engine)


def test_a_run_that_collapses_is_stopped(
    independent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the look at the pairs does not find is found in golden noise."""
    monkeypatch.setattr("npnet_training.training.data.check_pairs", lambda *_: None)
    options = ["--batch-size", "16", "--epochs", "20", "--cache-dir", str(tmp_path / "cache"), *NETWORK]
    options += ["--optimizer.learning-rate", "0.02", "--validation.share", "0.3"]
    assert train(["--data", str(independent), "--output", str(tmp_path / "run"), *options]) == 2
    said = capsys.readouterr().err
    assert "golden noise has collapsed, 2 validations in a row" in said
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sum("collapsed" in entry for entry in log) == 1  # the warning before


def test_a_good_run_says_so(data: Path, tmp_path: Path) -> None:
    options = ["--batch-size", "16", "--epochs", "1", "--cache-dir", str(tmp_path / "cache"), *NETWORK]
    assert train(["--data", str(data), "--output", str(tmp_path / "run"), *options]) == 0
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    assert summary["collapsed"] == []
    assert summary["last"]["norm_ratio"] == pytest.approx(1, abs=0.3)


def test_one_bad_validation_is_forgiven() -> None:
    good = {"norm_ratio": 1.0, "cosine": 0.0, "change": 0.1, "neighbours": 0.0}
    bad, progress = {**good, "norm_ratio": 0.2}, Progress()
    for found in (bad, good, bad):
        assert bool(judge(found, progress, allowed=False)) == (found is bad)
    with pytest.raises(TrainError, match="2 validations in a row"):
        judge(bad, progress, allowed=False)
    assert judge(bad, progress, allowed=True)

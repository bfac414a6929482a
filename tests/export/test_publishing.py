"""`--push`: what goes to the hub, in one commit, and what the card says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from npnet_export.cli import main
from npnet_export.publishing import model_card
from npnet_runtime import EngineBundle
from npnet_runtime.errors import BundleError
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.weights import checkpoint
from support.networks import SMALL

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Api:
    """Stands in for the hub: keeps what it is sent."""

    sent: dict[str, bytes]
    refuses = False

    def create_repo(self, repository: str, *, exist_ok: bool) -> None:
        assert exist_ok
        if Api.refuses:
            raise OSError("401 Client Error: Unauthorized")

    def create_commit(self, repository: str, operations: list[Any], *, commit_message: str) -> Any:
        Api.sent = {op.path_in_repo: op.path_or_fileobj for op in operations}
        return SimpleNamespace(oid=COMMIT)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "refuses", False)
    checkpoint.write(tmp_path / "small.safetensors", random_state(SMALL, 0), SMALL)
    return tmp_path / "small.safetensors"


def run(weights: Path, *more: str) -> int:
    fixed = ("--weights", weights, "--engine", "torch", "--device", "cpu", "--output", weights.parent / "e")
    return main([*map(str, fixed), *more])


def test_uploads_the_bundle_and_a_card(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(weights, "--push", "me/golden", "--licence", "apache-2.0") == 0
    assert f"pushed: me/golden@{COMMIT}" in capsys.readouterr().err
    folder = weights.parent / "e"
    assert set(Api.sent) == {"manifest.json", "weights.safetensors", "README.md"}
    for name in ("manifest.json", "weights.safetensors"):
        assert Api.sent[name] == (folder / name).read_bytes()
    card = Api.sent["README.md"].decode()
    assert 'license: "apache-2.0"' in card
    assert 'GoldenNoise("me/golden").attach(pipe)' in card
    assert "| golden | max_abs |" in card
    assert "No evaluation was recorded" in card
    assert not (folder / "README.md").exists()  # the bundle stays what its manifest lists


def test_refused_by_the_hub(weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(Api, "refuses", True)
    assert run(weights, "--push", "me/golden") == 1
    said = capsys.readouterr().err
    assert "401 Client Error" in said
    assert "hf auth login. The engine is kept in" in said
    assert EngineBundle.open(weights.parent / "e").manifest.model == "small"


def test_no_name_of_a_repository(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(weights, "--push", "golden") == 1
    assert "expected OWNER/NAME of a repository, given 'golden'" in capsys.readouterr().err
    assert not (weights.parent / "e").exists()


def test_a_changed_file_is_not_sent(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from npnet_export.publishing import push

    assert run(weights) == 0
    bundle = EngineBundle.open(weights.parent / "e")
    (bundle.path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match="is not the file"):
        push(bundle, "me/golden")


def evaluated(folder: Path, digest: str, **changes: Any) -> Path:
    score = {
        "mean": 0.31,
        "difference": 0.012,
        "low": 0.004,
        "high": 0.02,
        "wins": 60,
        "ties": 1,
        "losses": 39,
    }
    found = {
        "settings": {
            "model": "me/model",
            "prompts": "/home/me/drawbench.csv",
            "sample": {"steps": 30, "guidance": None},
        },
        "engines": {"golden:e": digest},
        "images": 100,
        "results": {
            "plain": {"scores": {"pickscore": {"mean": 0.3}}},
            "golden:e": {"scores": {"pickscore": score}},
        },
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(found | changes))
    return folder


def test_a_card_has_the_training_and_the_evaluation(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of = {"model": "me/model", "steps": 70, "pairs": {"train": 900}, "settings": {"loss": "mse"}}
    (weights.parent / "run.json").write_text(json.dumps(run_of))
    assert run(weights) == 0
    digest = EngineBundle.open(weights.parent / "e").digest
    folder = evaluated(weights.parent / "evaluation", digest)
    assert run(weights, "--push", "me/golden", "--evaluation", str(folder), "--force") == 0
    card = Api.sent["README.md"].decode()
    assert 'base_model: "me/model"' in card
    assert "| training | 70 steps on 900 pairs by the loss mse |" in card
    assert "| golden | pickscore | 0.3 | 0.31 | +0.012 (+0.004 to +0.02) | 60 / 1 / 39 |" in card
    assert "100 images of me/model in each arm, 30 steps, guidance of the pipeline" in card
    assert "`drawbench.csv`; golden noise by" in card
    assert "/home/me" not in card
    (weights.parent / "run.json").write_text("{")
    assert run(weights, "--force") == 1
    assert "damaged" in capsys.readouterr().err


def test_no_evaluation_to_show(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (weights.parent / "empty").mkdir()
    for folder, message in (
        (weights.parent / "empty", "expected a folder of npnet-evaluate"),
        (evaluated(weights.parent / "none", "d", engines={}), "expected one with an arm golden:ENGINE"),
    ):
        assert run(weights, "--push", "me/golden", "--evaluation", str(folder)) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(weights, "--evaluation", str(folder))
    assert not (weights.parent / "e").exists()


def test_cards(small_bundles: dict[str, EngineBundle]) -> None:
    card = model_card(small_bundles["aoti"].manifest, "me/golden")
    assert 'GoldenNoise("me/golden", trust_code=True, revision=COMMIT).attach(pipe)' in card
    assert "| licence of the weights | not stated |" in card

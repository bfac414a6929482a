"""`--push`: what goes to the hub, in one commit, and what the card says."""

from __future__ import annotations

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


def test_cards(small_bundles: dict[str, EngineBundle]) -> None:
    card = model_card(small_bundles["aoti"].manifest, "me/golden")
    assert 'GoldenNoise("me/golden", trust_code=True, revision=COMMIT).attach(pipe)' in card
    assert "| licence of the weights | not stated |" in card

"""Engines from the hub: fetched whole, recorded, and machine code only for who trusts it."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.bundles.remote import names_a_repository
from npnet_runtime.errors import BundleError, DownloadError
from support.networks import SMALL, noise_and_prompts

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Stands in for `hf_hub_download`: repositories of one commit, and a cache laid out like the real one."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.repositories = cache, dict[str, Path]()
        self.fetched: list[str] = []

    def download(self, repository: str, filename: str, *, revision: str | None = None) -> str:
        response: Any = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
        if repository not in self.repositories or revision not in (None, "main", COMMIT):
            raise RepositoryNotFoundError("404", response=response)
        source = self.repositories[repository] / filename
        if not source.is_file():
            raise EntryNotFoundError("404")
        place = self.cache / repository.replace("/", "--") / "snapshots" / COMMIT / filename
        place.parent.mkdir(parents=True, exist_ok=True)
        blob = self.cache / "blobs" / f"{repository.replace('/', '--')}-{filename}"
        blob.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, blob)
        if not place.exists():
            place.symlink_to(blob)  # out of the folder, as in the real cache
        self.fetched.append(filename)
        return str(place)


@pytest.fixture
def hub(small_bundles: dict[str, EngineBundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "cache")
    built = {name: small_bundles[name] for name in ("torch", "onnxruntime", "aoti")}
    made.repositories = {f"somebody/{name}": bundle.path for name, bundle in built.items()}
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", made.download)
    monkeypatch.chdir(tmp_path)
    return made


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_data_loads(hub: Hub, engine: str, small_bundles: dict[str, EngineBundle]) -> None:
    golden = GoldenNoise(f"somebody/{engine}", device="cpu")
    noise, prompts = noise_and_prompts(SMALL, 2)
    expected = GoldenNoise(small_bundles[engine], device="cpu")(noise, prompts)
    assert torch.equal(golden(noise, prompts), expected)
    assert f"from somebody/{engine}@{COMMIT}" in golden.report()
    assert sorted(hub.fetched) == sorted(["manifest.json", *golden.bundle.manifest.files])
    again = pickle.loads(pickle.dumps(golden))
    assert torch.equal(again(noise, prompts), expected)


class TestMachineCode:
    @pytest.mark.parametrize(
        ("options", "lacking"),
        [
            ({}, f"trust_code=True and a commit .revision='{COMMIT}' is the newest"),
            ({"trust_code": True}, "and a commit"),
            ({"trust_code": True, "revision": "main"}, "and a commit"),
            ({"revision": COMMIT}, "pass trust_code=True$"),
        ],
    )
    def test_is_not_trusted(self, hub: Hub, options: dict[str, Any], lacking: str) -> None:
        with pytest.raises(BundleError, match=f"aoti is machine code.*{lacking}"):
            GoldenNoise("somebody/aoti", device="cpu", **options)
        assert hub.fetched == ["manifest.json"]  # nothing else was even fetched

    def test_is_trusted_at_a_commit(self, hub: Hub) -> None:
        golden = GoldenNoise("somebody/aoti", device="cpu", trust_code=True, revision=COMMIT)
        assert golden(*noise_and_prompts(SMALL, 1)).isfinite().all()

    def test_in_a_folder_is_the_users_own(self, small_bundles: dict[str, EngineBundle]) -> None:
        assert GoldenNoise(small_bundles["aoti"].path, device="cpu").bundle.origin is None


def test_changed_on_the_hub(hub: Hub, small_bundles: dict[str, EngineBundle], tmp_path: Path) -> None:
    shutil.copytree(small_bundles["torch"].path, tmp_path / "copy")
    weights = tmp_path / "copy" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    hub.repositories["somebody/changed"] = tmp_path / "copy"
    with pytest.raises(BundleError, match="is not the file the bundle was written with"):
        GoldenNoise("somebody/changed", device="cpu")


def test_no_such_thing(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(
        DownloadError, match="somebody/else: no such folder, and no such repository or revision"
    ):
        GoldenNoise("somebody/else", device="cpu")
    with pytest.raises(DownloadError, match="somebody/torch@v2: no such folder, and no such repository"):
        GoldenNoise("somebody/torch", device="cpu", revision="v2")
    (tmp_path / "empty").mkdir()
    hub.repositories["somebody/empty"] = tmp_path / "empty"
    with pytest.raises(BundleError, match="expected an engine bundle.*npnet-export --weights somebody/empty"):
        GoldenNoise("somebody/empty", device="cpu")
    with pytest.raises(BundleError, match="expected owner/repository with a revision, given a folder"):
        GoldenNoise(str(tmp_path / "empty"), device="cpu", revision="main")


def test_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real library, without a connection."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DownloadError, match="nobody/nothing: no such folder.*--output nobody/nothing"):
        GoldenNoise("nobody/nothing", device="cpu")


def test_what_names_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert names_a_repository("somebody/sdxl-golden")
    for other in ("engines", "./engines/sdxl", "/engines/sdxl", "a/b/c", "a/b:c", Path("a/b"), 3, "~/x"):
        assert not names_a_repository(other)
    assert not names_a_repository("engines/sdxl")
    (tmp_path / "somebody").mkdir()
    assert not names_a_repository("somebody/sdxl-golden")

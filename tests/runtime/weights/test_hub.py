"""Downloads: the real huggingface_hub, offline, over a cache made by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from npnet_export.weights import WeightsRequest
from npnet_runtime.errors import DownloadError
from npnet_runtime.weights.hub import download, download_first, looks_like_hub_id, split_hub_id
from npnet_runtime.weights.models import MODELS, Source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--weights"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "sdxl.pth").write_bytes(b"weights")
    return tmp_path


def test_offline_finds_the_cache(cache: Path) -> None:
    assert download("owner/weights", "sdxl.pth", offline=True).read_bytes() == b"weights"


def test_offline_without_the_file(cache: Path) -> None:
    with pytest.raises(DownloadError, match=r"owner/weights:dit.pth is not in the cache.*--random-weights"):
        download("owner/weights", "dit.pth", offline=True)


def test_no_such_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise EntryNotFoundError.__new__(EntryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: ["b.pth", "a.pth"])
    with pytest.raises(
        DownloadError, match=r"it has a.pth, b.pth. Choose one with --weights owner/weights:FILE"
    ):
        download("owner/weights", "sdxl.pth")


def test_no_such_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(DownloadError, match="no such repository"):
        download("owner/absent", "sdxl.pth")


def test_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(DownloadError, match="Network is unreachable.*check the connection"):
        download("owner/weights", "sdxl.pth")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/repository", True),
        ("owner/repo.v2:dir/file.pth", True),
        ("owner/file.pth", False),
        ("./owner/repository", False),
        ("/owner/repository", False),
        ("a/b/c", False),
        ("file.safetensors", False),
    ],
)
def test_path_or_hub_id(text: str, expected: bool) -> None:
    assert looks_like_hub_id(text) is expected


def test_split() -> None:
    assert split_hub_id("a/b", "x.pth") == ("a/b", "x.pth")
    assert split_hub_id("a/b:c/d.pth", "x.pth") == ("a/b", "c/d.pth")
    with pytest.raises(DownloadError, match="owner/repository:file"):
        split_hub_id("a/b/c", "x.pth")


class TestSeveralSources:
    PTH, ABSENT = Source("owner/weights", "sdxl.pth"), Source("owner/other", "sdxl.safetensors")

    def test_the_first_that_can_be_had(self, cache: Path) -> None:
        path, source = download_first((self.ABSENT, self.PTH), offline=True)
        assert path.read_bytes() == b"weights"
        assert source == self.PTH

    def test_none(self, cache: Path) -> None:
        with pytest.raises(DownloadError, match=r"(?s)no source of .*reached:.*owner/other.*owner/x"):
            download_first((self.ABSENT, Source("owner/x", "sdxl.pth")), offline=True)

    def test_another_file(self, cache: Path) -> None:
        """Not passed over for the next: somebody has to look at it."""
        right = Source("owner/weights", "sdxl.pth", hashlib.sha256(b"weights").hexdigest())
        assert download_first((right,), offline=True)[1] == right
        with pytest.raises(DownloadError, match="expected the file with sha256 abc, given .*--weights"):
            download_first((Source("owner/weights", "sdxl.pth", "abc"), right), offline=True)

    def test_the_manifest_names_it(self, cache: Path, small_checkpoint: Path) -> None:
        for source in MODELS["sdxl"].sources[1:]:
            folder = cache / f"models--{source.repository.replace('/', '--')}"
            (folder / "refs").mkdir(parents=True)
            (folder / "refs" / "main").write_text(COMMIT)
            (folder / "snapshots" / COMMIT).mkdir(parents=True)
            (folder / "snapshots" / COMMIT / source.filename).symlink_to(small_checkpoint)
        path, named = WeightsRequest(MODELS["sdxl"], offline=True)._fetch()
        assert named == {"source": "Klayand/GoldenNoiseModel:sdxl.pth"}
        assert path.read_bytes() == small_checkpoint.read_bytes()
        assert [source.repository for source in MODELS["sdxl"].sources] == [
            "LucipherDev/Golden-Noise-NPNets",
            "Klayand/GoldenNoiseModel",
        ]

"""One behaviour on a local folder, an object store, and a remote file system that renames."""

import pickle
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from npnet_training import storage
from npnet_training.errors import StorageError


class Renaming(LocalFileSystem):
    """A file system on which a put can break off, as sftp; the folder stands for the server."""

    protocol = "renaming"
    fails = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(path.removeprefix("renaming://"))

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        half = value[: len(value) // 2] if self.fails else value
        super().pipe_file(path, half, **options)
        if self.fails:
            raise ConnectionResetError("the line is dead")


fsspec.register_implementation("renaming", Renaming, clobber=True)


@pytest.fixture(params=["local", "file", "memory", "renaming"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[storage.Location]:
    kind = request.param
    place = f"memory://bucket/{secrets.token_hex(4)}" if kind == "memory" else f"{tmp_path}/out"
    yield storage.locate(f"{kind}://{place}" if kind in ("file", "renaming") else place)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_write_read_list(folder: storage.Location) -> None:
    assert storage.is_free(folder)
    assert not storage.exists(folder)
    assert storage.listed(folder / "data") == []
    for name in ("b.parquet", "a.parquet", "c.html"):
        storage.write_bytes(folder / "data" / name, name.encode())
    storage.write_bytes(folder / "data" / "a.parquet", b"again")
    assert not storage.is_free(folder)
    assert storage.exists(folder)
    assert storage.exists(folder / "data" / "a.parquet")
    assert not storage.exists(folder / "data" / "d.parquet")
    found = storage.listed(folder / "data", ".parquet")
    assert found == [folder / "data" / "a.parquet", folder / "data" / "b.parquet"]
    assert [place.name for place in found] == ["a.parquet", "b.parquet"]
    assert len(storage.listed(folder / "data")) == 3  # no temporary file
    assert storage.read_bytes(found[0]) == b"again"
    assert storage.size(found[1]) == 9
    with storage.open_binary(found[1]) as file:
        file.seek(2)
        assert file.read() == b"parquet"
    assert pickle.loads(pickle.dumps(folder)) == folder
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(folder / "nothing")


def test_a_folder_within_a_folder_of_the_same_name(folder: storage.Location) -> None:
    storage.write_bytes(folder / "data" / "data" / "x", b"1")
    assert storage.listed(folder / "data") == [folder / "data" / "data"]
    assert not storage.is_free(folder / "data")


def test_file_urls_are_local_paths(tmp_path: Path) -> None:
    assert storage.locate(f"file://{tmp_path}/x/") == tmp_path / "x"
    assert storage.locate("pairs/x") == Path("pairs/x")
    assert storage.locate(tmp_path) is tmp_path


def test_what_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = storage.locate(f"renaming://{tmp_path}")
    storage.write_bytes(folder / "a", b"before")
    monkeypatch.setattr(Renaming, "fails", True)
    with pytest.raises(StorageError, match=r"renaming://.*ConnectionResetError: the line is dead"):
        storage.write_bytes(folder / "a", b"after it")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"before"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s4://bucket/x", r"s4://bucket/x: expected a folder, or a URL .*Protocol not known: s4"),
        ("memory://", "expected a folder after memory://"),
        ("absent://x/y", "absent://x/y: Install it: pip install no_such_package"),
    ],
)
def test_wrong_urls(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"class": "no_such_package.fs.Absent", "err": "Install it"}
    monkeypatch.setitem(known_implementations, "absent", absent)
    with pytest.raises(StorageError, match=message):
        storage.locate(url)


def test_errors_of_any_package_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        pass

    def refuse(*_: Any, **__: Any) -> None:
        raise NoCredentialsError("unable to locate credentials")

    place = storage.locate("memory://bucket/x")
    for name, ask in (
        ("info", storage.exists), ("ls", storage.listed), ("cat_file", storage.read_bytes),
        ("pipe_file", lambda where: storage.write_bytes(where, b"")),
    ):  # fmt: skip
        monkeypatch.setattr(MemoryFileSystem, name, refuse)
        with pytest.raises(StorageError, match=r"memory://bucket/x: NoCredentialsError: unable") as error:
            ask(place)
        assert isinstance(error.value, OSError)

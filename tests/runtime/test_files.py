from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from npnet_runtime.files import atomic_directory, atomic_file


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


def test_file_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "file"
    with pytest.raises(Interrupted), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise Interrupted
    assert not list(target.parent.iterdir())
    with atomic_file(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["file"]


@pytest.fixture(params=[(0o022, 0o644), (0o077, 0o600)])
def mode_by_umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The permissions of a new file, under an umask that is set for the test."""
    if os.name == "nt":
        pytest.skip("no umask")
    umask, mode = request.param
    before = os.umask(umask)
    yield mode
    os.umask(before)


def test_file_follows_the_umask(mode_by_umask: int, tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as temporary:
        temporary.unlink(missing_ok=True)
        temporary.touch(0o400)  # a writer that chooses for itself
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode_by_umask


def test_files_of_a_directory_are_read_by_who_reads_it(mode_by_umask: int, tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "bundle") as temporary:
        (temporary / "part").mkdir()
        (temporary / "part" / "file").touch(0o600)
    assert (tmp_path / "bundle" / "part" / "file").stat().st_mode & 0o777 == mode_by_umask


def test_file_replaces(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(Interrupted), atomic_file(target) as temporary:
        temporary.write_text("new")
        raise Interrupted
    assert target.read_text() == "old"


def test_directory_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with pytest.raises(Interrupted), atomic_directory(target) as temporary:
        (temporary / "a").touch()
        raise Interrupted
    assert not list(tmp_path.iterdir())
    with atomic_directory(target) as temporary:
        (temporary / "a").touch()
    assert os.listdir(tmp_path) == ["bundle"]


def test_directory_replaces_only_when_told(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    with atomic_directory(target) as temporary:  # an empty one may be there
        (temporary / "old").touch()
    with pytest.raises(FileExistsError), atomic_directory(target) as temporary:
        (temporary / "new").touch()
    assert os.listdir(target) == ["old"]
    with pytest.raises(Interrupted), atomic_directory(target, replace=True) as temporary:
        raise Interrupted
    assert os.listdir(target) == ["old"]
    with atomic_directory(target, replace=True) as temporary:
        (temporary / "new").touch()
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["bundle"]


def test_directory_comes_back_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").touch()
    rename, calls = Path.rename, []

    def fail_second(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="no"), atomic_directory(target, replace=True) as temporary:
        (temporary / "new").touch()
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["bundle"]


def test_makes_the_folders_above(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a" / "b" / "file") as temporary:
        temporary.write_text("whole")
    with atomic_directory(tmp_path / "c" / "d" / "folder") as folder:
        (folder / "file").touch()
    assert (tmp_path / "a" / "b" / "file").read_text() == "whole"
    assert (tmp_path / "c" / "d" / "folder" / "file").exists()


def test_what_a_link_leads_to_keeps_its_permissions(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    with atomic_directory(tmp_path / "folder") as folder:
        (folder / "link").symlink_to(secret)
    assert secret.stat().st_mode & 0o777 == 0o600

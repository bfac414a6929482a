"""Files of a dataset, in a local folder or behind a URL of fsspec such as `s3://BUCKET/FOLDER`.

Local folders are `pathlib.Path`, and everything on them is as without this module. Credentials and endpoints
of the others are those of fsspec's own configuration (`~/.config/fsspec`, or what their packages read).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from npnet_runtime.files import atomic_file
from npnet_training.errors import StorageError

# Here a put is whole or not at all. Elsewhere (sftp, hdfs, smb, ...) a file is renamed, which here is a copy.
_OBJECT_STORES = {"abfs", "abfss", "az", "gcs", "gs", "hf", "memory", "oci", "oss", "s3", "s3a", "tos"}
_LOCAL = {"file", "local"}


@dataclass(frozen=True)
class RemotePath:
    """A file or folder that fsspec reaches; `locate` makes it. No more than its URL, so it can be pickled."""

    url: str

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]


Location = Path | RemotePath


def locate(where: str | Path | RemotePath) -> Location:
    """A place by its path or URL; `file://` is a local path. Nothing is asked over a network.

    Raises:
        StorageError: fsspec knows no such file system, or its package is missing.
    """
    if not isinstance(where, str):
        return where
    scheme, separator, rest = where.partition("://")
    if not separator:
        return Path(where)
    from fsspec import get_filesystem_class

    try:
        system: Any = get_filesystem_class(scheme)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None)
        hint = f"pip install {package}" if package else "install the package that it names"
        raise StorageError(f"{where}: {error}: {hint}") from error
    except ValueError as error:
        raise StorageError(
            f"{where}: expected a folder, or a URL of fsspec such as s3://BUCKET/FOLDER ({error})"
        ) from error
    if not rest.strip("/"):
        raise StorageError(f"{where}: expected a folder after {scheme}://")
    return Path(system._strip_protocol(where)) if scheme in _LOCAL else RemotePath(where.rstrip("/"))


def exists(place: Location) -> bool:
    """Whether there is a file or folder.

    Raises:
        StorageError: it cannot be asked.
    """
    if isinstance(place, Path):
        return place.exists()
    with _remote(place) as (system, path):
        try:
            system.info(path)
        except FileNotFoundError:
            return False
    return True


def is_free(folder: Location) -> bool:
    """Whether there is nothing, or an empty folder.

    Raises:
        StorageError: it cannot be asked.
    """
    if isinstance(folder, Path):
        return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    return not exists(folder) or not listed(folder)


def listed(folder: Location, suffix: str = "") -> list[Location]:
    """What is in a folder and ends so, in order; nothing if there is no folder.

    Raises:
        StorageError: it cannot be asked.
    """
    if isinstance(folder, Path):
        return [*sorted(folder.glob(f"*{suffix}"))]
    with _remote(folder) as (system, path):
        try:
            found = system.ls(path, detail=False)
        except FileNotFoundError:
            return []
    # Some object stores keep an empty object by the folder's own name.
    inside = {entry.rstrip("/") for entry in found} - {path.rstrip("/")}
    names = sorted(entry.rpartition("/")[2] for entry in inside)
    return [folder / name for name in names if name.endswith(suffix)]


def size(place: Location) -> int:
    """Bytes of a file.

    Raises:
        OSError: it cannot be asked.
    """
    if isinstance(place, Path):
        return place.stat().st_size
    with _remote(place) as (system, path):
        return int(system.size(path))


def open_binary(place: Location) -> BinaryIO:
    """A file for reading at any place in it.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(place, Path):
        return place.open("rb")
    with _remote(place) as (system, path):
        file: BinaryIO = system.open(path, "rb")
        return file


def read_bytes(place: Location) -> bytes:
    """The whole of a file.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(place, Path):
        return place.read_bytes()
    with _remote(place) as (system, path):
        return bytes(system.cat_file(path))


def write_bytes(place: Location, data: bytes) -> None:
    """Write a file whole or not at all, and the folders it needs.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(place, Path):
        with atomic_file(place) as temporary:
            temporary.write_bytes(data)
        return
    with _remote(place) as (system, path):
        if place.url.partition("://")[0] in _OBJECT_STORES:
            system.pipe_file(path, data)
            return
        parent, _, name = path.rpartition("/")
        system.makedirs(parent, exist_ok=True)
        hidden = f"{parent}/.{name}.{secrets.token_hex(4)}.tmp"
        try:
            system.pipe_file(hidden, data)
            system.mv(hidden, path)
        except BaseException:
            if system.exists(hidden):
                system.rm_file(hidden)
            raise


@contextmanager
def _remote(place: RemotePath) -> Iterator[tuple[Any, str]]:
    """The file system as it is now, and errors of any package as one of ours."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(place.url)
        system.invalidate_cache()  # others write there too
        yield system, path
    except FileNotFoundError:
        raise
    except Exception as error:  # of any package: botocore's, gcsfs's, paramiko's
        raise StorageError(f"{place}: {type(error).__name__}: {error}") from error

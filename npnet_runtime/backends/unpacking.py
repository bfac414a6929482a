"""Folders that AOTInductor's loader unpacks shared libraries into: one for each back end, none left behind.

The loader makes its folders wherever `TMPDIR` says, and removes them when it is freed: not after `kill -9`,
and not where loading failed. So it is given a folder of ours, which a process that dies leaves unlocked.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from npnet_runtime.errors import BackendError

PREFIX, LOCK = "npnet-aoti-", "lock"
_environment = threading.Lock()


class UnpackingFolder:
    """A folder that is there as long as this object, or the process; those of dead processes are removed.

    Raises:
        BackendError: no such folder can be made.
    """

    def __init__(self) -> None:
        try:
            parent = tempfile.gettempdir()
            _remove_abandoned(Path(parent))
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise BackendError(
                f"AOTInductor unpacks its libraries into the folder that TMPDIR names, and none can be made "
                f"there ({error}); set TMPDIR to a folder that can be written"
            ) from error
        _try_lock(lock)
        self._finalizer = weakref.finalize(self, _remove, self.path, lock, os.getpid())

    @contextmanager
    def named(self) -> Iterator[None]:
        """Have `TMPDIR` name the folder: the loader asks for nothing else. One thread at a time."""
        with _environment:
            before = os.environ.get("TMPDIR")
            os.environ["TMPDIR"] = str(self.path)
            try:
                yield
            finally:
                if before is None:
                    del os.environ["TMPDIR"]
                else:
                    os.environ["TMPDIR"] = before

    def remove(self) -> None:
        """Remove it now."""
        self._finalizer()


def _remove(path: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:  # a fork inherits this object, and not the right to do so
        shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(PREFIX + "*"):
        with suppress(OSError):  # another user's, or another process was faster
            lock = os.open(folder / LOCK, os.O_RDWR)
            if _try_lock(lock):
                _remove(folder, lock, os.getpid())
            else:
                os.close(lock)


def _try_lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:
        return True  # Windows, which keeps files from being removed that a process has loaded or opened
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

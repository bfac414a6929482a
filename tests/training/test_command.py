"""Errors and interruptions of a command as its exit status and one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from npnet_training.command import run
from npnet_training.errors import DatasetError
from npnet_training.settings import Settings


class Nothing(Settings):
    """Do nothing."""


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/a.png"), 2,
            "error: cannot be read or written: [Errno 28] No space left on device: '/data/a.png'; "
            "make room, or check the permissions; go on so",
        ),
        (DatasetError("no pair"), 2, "error: no pair"),
        (KeyboardInterrupt(), 130, "stopped; go on so"),
    ],
)  # fmt: skip
def test_statuses(error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work(settings: Nothing) -> int:
        raise error

    assert run(Nothing, "nothing", "", [], work, stopped="go on so") == status
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work(settings: Nothing) -> int:
        with open("/dev/full", "w") as file:
            file.write("picture")
        return 0

    assert run(Nothing, "nothing", "", [], work) == 2
    assert "No space left on device; make room, or check the permissions; go on with --resume" in (
        capsys.readouterr().err
    )

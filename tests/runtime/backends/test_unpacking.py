"""Where AOTInductor's libraries are unpacked, and that nothing of them is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.backends.unpacking import LOCK, PREFIX, UnpackingFolder
from npnet_runtime.errors import BackendError, BundleError
from support.networks import SMALL, noise_and_prompts

HOLDS = """
import os, signal, sys
from npnet_runtime.backends.unpacking import UnpackingFolder
folder = UnpackingFolder()
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["plain", "with blank", "q'uote\"s", "$HOME;x"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / request.param
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return path


def test_any_path(folder: Path, small_bundles: dict[str, EngineBundle]) -> None:
    golden = GoldenNoise(small_bundles["aoti"], device="cpu")
    golden(*noise_and_prompts(SMALL, 2))
    (own,) = folder.iterdir()
    assert own.name.startswith(PREFIX)
    assert os.environ["TMPDIR"] == str(folder)
    del golden
    gc.collect()
    assert not list(folder.iterdir())


def test_a_killed_process_leaves_nothing_for_long(folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLDS], env=environment, **pipes)  # type: ignore[call-overload]
    with process:
        left = Path(process.stdout.readline().strip())
        assert left.parent == folder
        first = UnpackingFolder()
        assert left.is_dir()  # its process is alive
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert left.is_dir()
    second = UnpackingFolder()
    assert not left.exists()
    assert first.path.is_dir()
    first.remove()
    second.remove()
    assert not list(folder.iterdir())


def test_a_fork_does_not_remove_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = UnpackingFolder()
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        made.remove()
    assert (made.path / LOCK).is_file()


def test_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(
        BackendError, match="TMPDIR.*No such file.*set TMPDIR to a folder that can be written"
    ):
        UnpackingFolder()


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("x.so: failed to map segment from shared object", BackendError, "set TMPDIR .*may execute files"),
        ("x.so: undefined symbol", BundleError, "write it again with"),
    ],
)
def test_not_loaded(
    said: str,
    error: type,
    words: str,
    folder: Path,
    small_bundles: dict[str, EngineBundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(path: str, device: torch.device) -> None:
        assert Path(path).is_file()
        raise RuntimeError(said)

    monkeypatch.setattr("npnet_runtime.backends.aoti_backend.load_package", load)
    with pytest.raises(error, match=words):
        GoldenNoise(small_bundles["aoti"], device="cpu")
    assert not list(folder.iterdir())

"""How many threads a session gets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from npnet_runtime import EngineBundle, GoldenNoise, threads
from npnet_runtime.errors import BackendError
from npnet_runtime.threads import VARIABLE, available_cores, cgroup_quota, choose_threads


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eight cores, no quota, and as many threads of PyTorch."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(threads, "_CGROUP_2", tmp_path / "cpu.max")
    monkeypatch.setattr(threads, "_CGROUP_1", tmp_path / "cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)


def test_who_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_threads() == 6
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert choose_threads() == 2
    monkeypatch.setenv(VARIABLE, "12")
    assert choose_threads() == 12  # asked for in so many words
    assert choose_threads(3) == 3
    monkeypatch.setenv(VARIABLE, "")
    assert choose_threads() == 2


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000\n", 8), ("150000 100000\n", 2), ("50000 100000", 1), ("", 8)]
)
def test_quota(text: str, cores: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert available_cores() == cores


def test_quota_of_the_first_kind(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("250000\n")
    assert cgroup_quota() == 2.5
    assert available_cores() == 3
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert available_cores() == 8


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "two"])
def test_no_number(given: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="threads: expected a number of threads of 1 or more, given"):
        choose_threads(given)  # type: ignore[arg-type]
    monkeypatch.setenv(VARIABLE, str(given).replace("True", "yes"))
    with pytest.raises(BackendError, match="NPNET_THREADS: expected"):
        choose_threads()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_sessions(engine: str, small_bundles: dict[str, EngineBundle]) -> None:
    """The spectral head, which runs beside the rest, has one thread, the rest what was asked for."""
    steps: Any = GoldenNoise(small_bundles[engine], device="cpu", threads=2)._pass
    backend = steps._backend
    if engine == "onnxruntime":
        found = {
            name: session.get_session_options().intra_op_num_threads
            for (name, _), session in backend._sessions.items()
        }
    else:
        found = {
            name: compiled._compile(None).get_property("INFERENCE_NUM_THREADS")
            for name, compiled in backend._compiled.items()
        }
    assert found == {"spectral_head": 1, "prompt_half": 2}


@pytest.mark.parametrize("engine", ["torch", "aoti"])
def test_engines_that_have_none(engine: str, small_bundles: dict[str, EngineBundle]) -> None:
    with pytest.raises(BackendError, match=r"threads: .*torch.set_num_threads\(2\).*--engine onnxruntime"):
        GoldenNoise(small_bundles[engine], device="cpu", threads=2)

"""The latency benchmark on small networks, and its refusal to praise a wrong result."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import harness
import latency
import latency_race
from harness import Timing, interleave
from latency_overlap import Overlap
from npnet_runtime import GoldenNoise
from npnet_runtime.backends.openvino_backend import devices
from npnet_runtime.weights.models import MODELS
from support.networks import SMALL, noise_and_prompts


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(MODELS, "sdxl", replace(MODELS["sdxl"], config=SMALL))

    def main(*arguments: str) -> tuple[int, dict, str]:
        argv = ["latency.py", "--rounds", "3", "--device", "cpu", "--output", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        status = latency.main()
        return status, json.loads((tmp_path / "latency-sdxl-cpu.json").read_text()), capsys.readouterr().out

    return main


def test_another_network(run) -> None:
    """It has no SVD, and is compared with itself in float32."""
    status, result, _ = run("--network", "npnet", "prompt-attention", "--engine", "onnxruntime")
    assert status == 0
    published, ours, other = result["rows"]
    assert ours["engine"] == "onnxruntime fp32"
    assert other["engine"] == "prompt-attention onnxruntime fp32"
    assert set(other["milliseconds"]) == {"prompt half", "critical path", "end to end"}
    assert other["parity"]["agrees"]
    ratio = other["speed_up"]["end to end"]
    times = [row["milliseconds"]["end to end"]["median"] for row in (published, other)]
    assert ratio == pytest.approx(times[0] / times[1])


def test_all_engines(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {name: kind for name, kind in latency_race.ENGINES.items() if name != "aoti"}
    monkeypatch.setattr(latency_race, "ENGINES", kinds)  # half a minute of compilation
    status, result, printed = run("--batch", "1", "2")
    assert status == 0
    half = ["openvino bf16"] if "BF16" in devices()["CPU"] else []  # where it is not emulated
    names = [latency.BASELINE, "onnxruntime fp32", "openvino fp32", *half, "torch fp32"]
    assert [row["engine"] for row in result["rows"]] == 2 * names
    for row in result["rows"]:
        assert row["parity"]["agrees"]
        assert row["speed_up"].keys() == row["milliseconds"].keys() == set(latency.STAGES)
        for timing in row["milliseconds"].values():
            assert 0 < timing["median"] <= timing["p90"] <= timing["p99"]
    engine = result["rows"][1]
    assert engine["fresh_process"]["cold_start_s"] > 0
    assert engine["fresh_process"]["peak_mb"] > 0
    assert {"cpu", "cores", "torch", "commit"} <= result["environment"].keys()
    assert (tmp_path / "latency-sdxl-cpu.png").read_bytes()[:4] == b"\x89PNG"
    assert "agrees" in printed
    assert "1 transformer layers" in result["encoder_stand_in"]


def test_no_ratio_without_parity(run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = latency.PublishedNPNet.forward
    monkeypatch.setattr(latency.PublishedNPNet, "forward", lambda *a, **k: original(*a, **k) + 0.01)
    status, result, printed = run("--engine", "torch")
    assert status == 1
    row = result["rows"][1]
    assert not row["parity"]["agrees"]
    assert "speed_up" not in row
    assert "DISAGREES" in printed
    assert "no ratio" in printed


def test_engines_that_cannot_run_are_listed(run) -> None:
    status, result, printed = run("--engine", "torch", "--engine", "onnxruntime:bf16")
    assert status == 0
    assert "no bfloat16 products" in result["absent"]["onnxruntime bf16"]
    assert "not measured: onnxruntime bf16" in printed


def test_timing() -> None:
    timing = Timing.of([float(value) for value in range(1, 101)])
    assert (timing.median, timing.p90, timing.p99) == (50.5, 91.0, 100.0)


def test_interleaves() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timings = interleave(calls, 2, torch.device("cpu"), warmup=1)
    assert "".join(order) == "ababab"
    assert timings.keys() == {"a", "b"}
    assert harness.environment(torch.device("cpu"))["device"] == "cpu"


def test_what_comes_before_is_not_timed() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("before")
        time.sleep(0.05)

    timings = interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        3,
        torch.device("cpu"),
        warmup=1,
        before={"a": slow},
    )
    assert order == ["before", "a", "b"] * 4
    assert timings["a"].median < 25


def test_overlap_is_golden_noise_of_a_request(small_torch_bundle) -> None:
    """The critical path begins with the prompt: the noise is prepared before it, and by then only."""
    golden = GoldenNoise(small_torch_bundle, device="cpu")
    prepared: list[int] = []
    original = golden.prepare
    golden.prepare = lambda noise: prepared.append(len(noise)) or original(noise)  # type: ignore[method-assign]
    noise, prompts = noise_and_prompts(SMALL, 2)
    encoded: list[int] = []
    overlap = Overlap(golden, noise, prompts, lambda: encoded.append(len(prepared)))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="begin"):
        overlap.finish()
    for _ in range(2):
        overlap.begin()
        assert torch.equal(overlap.finish(), golden(noise, prompts))
    overlap.close()
    assert prepared == [2, 2]
    assert len(encoded) == 2

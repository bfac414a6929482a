"""The training benchmark on a small network, and its refusal to report where losses differ."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import training
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.weights.models import MODELS
from support.networks import SMALL
from text_encoders import BIG_G, LARGE, TextEncoders

TEXT = {"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50}
TINY = (CLIPTextConfig(hidden_size=768, **TEXT), CLIPTextConfig(hidden_size=1280, **TEXT))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def main(config: NPNetConfig = SMALL) -> int:
        monkeypatch.setitem(MODELS, "sdxl", dataclasses.replace(MODELS["sdxl"], config=config))
        fixed = ["--device", "cpu", "--batch", "3", "--rounds", "2", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["training.py", *fixed])
        return training.main()

    return main


def test_text_encoders_give_what_the_network_takes() -> None:
    encoders = TextEncoders(torch.device("cpu"), TINY)
    encoded = encoders()
    assert encoded.shape == (1, *training.SDXL_TEXT)
    assert torch.isfinite(encoded).all()
    assert encoded.std() > 0


@pytest.mark.parametrize(
    ("kind", "config", "size"),
    [(CLIPTextModel, LARGE, 123_060_480), (CLIPTextModelWithProjection, BIG_G, 694_659_840)],
)
def test_text_encoders_are_of_sdxls_size(kind: type, config: CLIPTextConfig, size: int) -> None:
    """The parameters of stabilityai/stable-diffusion-xl-base-1.0's two encoders."""
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in kind(config).parameters()) == size


def test_whole_public_step_is_slower_by_encoding(run, tmp_path: Path, monkeypatch) -> None:
    wide = dataclasses.replace(SMALL, text_tokens=77, text_dim=2048)
    monkeypatch.setattr(training, "TextEncoders", lambda device: TextEncoders(device, TINY))
    assert run(wide) == 0
    result = json.loads((tmp_path / "training-sdxl-cpu-batch3.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert rows[training.WHOLE]["ratio_to_whole"] == 1
    assert all(
        row["ratio_to_whole"] == pytest.approx(rows[training.WHOLE]["median_ms"] / row["median_ms"])
        for row in rows.values()
    )


def test_runs(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    result = json.loads((tmp_path / "training-sdxl-cpu-batch3.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == {"npnet", "npnet, bf16", "prompt-attention", "public recipe"}
    assert rows["public recipe"]["ratio"] == rows["public recipe"]["processor_ratio"] == 1
    assert all(row["ratio_to_whole"] is None for row in rows.values()), "not SDXL's embeddings"
    assert all(row["processor_ms"] > 0 for row in rows.values())
    public = result["parity"]["public recipe"]
    assert public[0] > public[-1] > 0
    assert result["parity"]["npnet"]["losses"] == pytest.approx(public, abs=1e-4)
    halved = result["parity"]["npnet, bf16"]["losses"]
    assert halved == pytest.approx(public, rel=1e-2)
    assert halved != result["parity"]["npnet"]["losses"], "the products were not in bfloat16"
    assert "public recipe" in capsys.readouterr().out


@pytest.mark.parametrize("tolerance", ["TOLERANCE", "BF16_TOLERANCE"])
def test_reports_nothing_where_losses_differ(
    tolerance: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, tolerance, -1.0)
    assert run() == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert "nothing is reported" in written.err
    assert not list(tmp_path.iterdir())

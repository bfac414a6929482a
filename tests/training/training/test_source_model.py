"""Pairs are trained with the model that they were made with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from npnet_training.errors import DatasetError
from npnet_training.models import ModelInfo
from npnet_training.pairs import PairInfo
from npnet_training.training import source_model
from npnet_training.training.loop import train
from support.pipelines import PIPELINES
from support.training import ATTENTION, relabel, settings_for

DEVICE = torch.device("cpu")


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_embeddings_of_another_revision_are_never_used(data: Path, tmp_path: Path, loss: str) -> None:
    pairs = tmp_path / "pairs"
    shutil.copytree(data, pairs)
    relabel(pairs, replace(PairInfo.read(data), revision="0" * 40))
    changes: dict[str, Any] = {"loss": loss, "network": ATTENTION, "max_steps": 1}
    with pytest.raises(DatasetError, match=r"with revision 0{40}, but it has [0-9a-f]+ now; collect again"):
        train(settings_for(pairs, tmp_path / "run", cache_dir=tmp_path / "cache", **changes))
    assert not list((tmp_path / "cache" / "embeddings").rglob("*.npy"))


def test_the_hub_is_asked_for_the_revision(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_pipeline(name: str, revision: str | None, **_: object) -> tuple[Any, ModelInfo]:
        asked.append((name, revision))
        return PIPELINES["sdxl"](), ModelInfo(name, "b" * 40, "")

    monkeypatch.setattr(source_model, "load_pipeline", load_pipeline)
    info = replace(PairInfo.read(data), model="owner/model", revision="b" * 40)
    source_model.source_denoiser(info, DEVICE)
    source_model.source_denoiser(replace(info, revision=None), DEVICE)  # imported pairs know none
    assert asked == [("owner/model", "b" * 40), ("owner/model", None)]
    with pytest.raises(DatasetError, match="with revision a{40}, but it has b{40} now"):
        source_model.source_denoiser(replace(info, revision="a" * 40), DEVICE)

"""Pipelines from folders and from single files; what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.errors import PipelineError
from npnet_runtime.generate.cli import main
from npnet_runtime.integrations.diffusers.loading import load
from support.pipelines import stable_diffusion
from support.single_file import write_single_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "folder"
    stable_diffusion().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    path = folder.with_name("one.safetensors")
    write_single_file(load(str(folder), torch.float32), path)
    return path


def test_a_single_file_is_its_folder(folder: Path, file: Path) -> None:
    images = []
    for pipe in (
        load(str(folder), torch.float32, offline=True),
        load(str(file), torch.float32, config=str(folder), offline=True),
    ):
        assert type(pipe).__name__ == "StableDiffusionPipeline"
        generator = torch.Generator().manual_seed(0)
        images.append(np.array(pipe("a cat", num_inference_steps=2, generator=generator).images[0]))
    assert np.array_equal(*images)
    assert images[0].std() > 1


def test_in_front_of_a_single_file(
    folder: Path, file: Path, text_bundle: EngineBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--engine", str(text_bundle.path), "--prompt", "a cat", "--steps", "2", "--compare"]
    command = ["--model", str(file), "--output", str(tmp_path / "out"), "--device", "cpu", *options]
    assert main([*command, "--config", str(folder), "--offline"]) == 0
    assert len(list((tmp_path / "out").glob("*-0-*.png"))) == 2
    capsys.readouterr()
    command[3] = str(tmp_path / "other")
    assert main([*command, "--offline"]) == 1
    assert "name a folder or repository that has it with --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.safetensors", "no such file"),
        ("model.ckpt", "given a pickle, which may run anything; convert it"),
        ("damaged.safetensors", "expected the folder, the hub id or the .safetensors file"),
        ("no/where", "expected the folder, the hub id or the .safetensors file.*'no/where'"),
    ],
)
def test_refused(tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("damaged.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PipelineError, match=f"(?s){message}"):
        load(name, torch.float32, offline=True)

"""`npnet-export --for PIPELINE`: an engine from a look at a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionXLImg2ImgPipeline

from npnet_export.cli import main
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.integrations.diffusers.checks import denoiser
from npnet_runtime.networks.any_size_config import AnySizeConfig
from support.flow_pipelines import FLOWS, OPTIONS, SIZE
from support.pipelines import sdxl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLUX.1-dev, small, as `save_pretrained` leaves it."""
    path = tmp_path_factory.mktemp("pipelines") / "flux-tiny"
    FLOWS["flux-dev"]().save_pretrained(path)
    return path


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def test_an_engine_that_fits(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "engine"
    options = (
        "--for",
        folder,
        "--random-weights",
        3,
        "--engine",
        "torch",
        "--size",
        "64x96",
        "--output",
        output,
    )
    assert run(*options, "--most-tokens", 600, "--device", "cpu") == 0
    assert f"looking at {folder}" in capsys.readouterr().err
    bundle = EngineBundle.open(output)
    config = bundle.manifest.config
    assert isinstance(config, AnySizeConfig)
    assert (config.latent_shape, config.text_shape) == ((16, 8, 12), (512, 32))
    assert (config.pooled_dim, config.most_tokens, config.least_side, config.most_side) == (32, 600, 2, 24)
    assert bundle.manifest.reads == {"embeds": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    assert bundle.manifest.model == "flux-tiny"
    pipe = FLOWS["flux-dev"]()
    GoldenNoise(bundle, device="cpu").attach(pipe)
    images = pipe(
        "a cat", height=SIZE, width=SIZE, num_inference_steps=1, output_type="np", **OPTIONS["flux-dev"]
    )
    assert images.images.shape == (1, SIZE, SIZE, 3)


def test_the_command_that_writes_it_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "engine"
    options = (
        "--for",
        folder,
        "--random-weights",
        3,
        "--engine",
        "torch",
        "--size",
        "64x64",
        "--output",
        output,
    )
    assert run(*options, "--device", "cpu", "--quiet") == 0
    first = EngineBundle.open(output)
    command = first.rebuild_command().split()[1:]
    assert run(*command, "--device", "cpu", "--quiet") == 0
    again = EngineBundle.open(output)
    assert again.manifest.config == first.manifest.config
    assert again.manifest.files == first.manifest.files
    capsys.readouterr()
    assert run("inspect", output) == 0
    said = capsys.readouterr().out
    assert "sides of the noise 2 to 16, tokens 1 to 512" in said
    assert "prompt_embeds, pooled_prompt_embeds" in said
    assert run("verify", output, "--samples", 2, "--device", "cpu", "--quiet") == 0


def test_dry_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "engine"
    assert (
        run("--for", folder, "--random-weights", 0, "--engine", "torch", "--dry-run", "--output", output) == 0
    )
    assert "would load random weights, seed 0" in capsys.readouterr().out
    assert not output.exists()


def test_loads_no_weights_of_the_denoiser(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser of 24 GB is not needed to know what it starts from."""
    from npnet_export.for_pipeline import load_for_probe

    pipe = load_for_probe(str(folder))
    assert {weight.device.type for weight in denoiser(pipe).parameters()} == {"meta"}
    assert {weight.device.type for weight in pipe.vae.parameters()} == {"meta"}
    assert {weight.device.type for weight in pipe.text_encoder_2.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--for", "x"), "add --random-weights 0 to try the engine"),
        (("--for", "x", "--random-weights", 0, "--model", "sdxl"), "leave out --model and --weights"),
        (("--model", "sdxl", "--size", "64x64"), "--size belongs to --for"),
        (("--model", "sdxl", "--most-tokens", 5), "--most-tokens belongs to --for"),
        (
            ("--for", "x", "--random-weights", 0, "--size", "64"),
            "height and width such as 832x1216, given '64'",
        ),
    ],
)
def test_contradictions(options: tuple[Any, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(*options)
    assert said in capsys.readouterr().err


def test_no_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--random-weights", 0, "--engine", "torch", "--offline", "--output", tmp_path / "e")
    assert run("--for", tmp_path, *options) == 1
    assert "expected the folder or repository of a pipeline of diffusers" in capsys.readouterr().err
    assert run("--for", "nobody/nothing", *options) == 1
    assert "--for nobody/nothing: expected" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_a_pipeline_that_starts_from_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    StableDiffusionXLImg2ImgPipeline.from_pipe(sdxl()).save_pretrained(tmp_path / "p")
    options = ("--random-weights", 0, "--engine", "torch", "--output", tmp_path / "e")
    assert run("--for", tmp_path / "p", *options) == 1
    assert "given one that changes or continues an image" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["64x64", "8192x4"])
def test_a_list_of_sizes_of_its_own(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SANA brings sizes to those of a list; what it refuses all the same is an error in its words."""
    FLOWS["sana"]().save_pretrained(tmp_path / "p")
    options = ("--random-weights", 0, "--engine", "torch", "--size", size, "--output", tmp_path / "e")
    refused = size != "64x64"
    assert run("--for", tmp_path / "p", *options, "--device", "cpu") == refused
    if refused:
        assert "SanaPipeline: expected to call it with" in capsys.readouterr().err
    else:
        assert EngineBundle.open(tmp_path / "e").manifest.config.latent_shape == (32, 8, 8)


def test_sizes_that_contradict(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--random-weights", 0, "--engine", "torch", "--size", "64x64", "--output", tmp_path / "e")
    assert run("--for", folder, *options, "--most-side", 4) == 1
    assert "sides: expected 2 to 4, given 8 x 8" in capsys.readouterr().err

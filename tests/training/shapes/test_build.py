"""The whole of the build with a handful of steps; what long training gives is recorded beside the weights."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from npnet_training.embedded import MANIFEST, SHAPES, AssetsError
from npnet_training.errors import TrainError
from npnet_training.sampling import Denoiser, SampleSettings, draw_noise, sample_images
from npnet_training.shapes import build, judging
from npnet_training.shapes.data import draw_scenes, rows_of
from npnet_training.shapes.grammar import prompts
from npnet_training.shapes.networks import TOKENS, WIDTH, WORDS, make_autoencoder, make_tokenizer
from npnet_training.shapes.train_autoencoder import encode, train_autoencoder, train_decoder
from support.damage import alter

pytest.importorskip("diffusers")


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path, small: dict[str, int]) -> None:
    settings = build.BuildSettings(output=tmp_path / "model", device="cuda", **small)
    assert build.build(settings)["device"] != "cpu"
    SHAPES.check(tmp_path / "model")


def test_a_word_is_a_token() -> None:
    tokenizer = make_tokenizer()
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 3, word
    longest = max(prompts("train", 500), key=len)
    assert len(tokenizer(longest).input_ids) <= TOKENS


def test_pipeline_makes_images_and_is_a_diffusers_folder(built: Path) -> None:
    pipe = SHAPES.load(folder=built)
    pipe.set_progress_bar_config(disable=True)
    denoiser = Denoiser(pipe)
    assert denoiser.latent_shape == (4, 16, 16)
    assert denoiser.text_shape == (TOKENS, WIDTH)
    noise = draw_noise([1, 2], denoiser.latent_shape)
    images = sample_images(
        denoiser, ["a red circle", "a blue cross"], noise, SampleSettings(steps=2, guidance=2.0)
    )
    assert [image.size for image in images] == [(32, 32)] * 2
    from diffusers import DiffusionPipeline

    ordinary = DiffusionPipeline.from_pretrained(built, local_files_only=True)
    assert ordinary.scheduler.config.timestep_spacing == "trailing"
    for config in built.rglob("config.json"):
        assert str(built.parent) not in config.read_text()


def test_weak_is_another_denoiser_with_the_same_rest(built: Path) -> None:
    main, weak = SHAPES.load(folder=built), SHAPES.load("weak", folder=built)
    assert torch.equal(main.vae.decoder.conv_in.weight, weak.vae.decoder.conv_in.weight)
    assert not torch.equal(main.unet.conv_in.weight, weak.unet.conv_in.weight)


def test_metrics_are_kept(built: Path) -> None:
    metrics = json.loads((built / "metrics.json").read_text())
    assert [look["step"] for look in metrics["looks"]] == [2, 4]
    assert metrics["settings"]["seed"] == 0
    assert metrics["main"]["prompts"] == metrics["weak"]["prompts"] == 10
    assert not built.with_name("model.work").exists()


def test_goes_on_after_a_kill_to_the_same_weights(
    built: Path, small: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = build.BuildSettings(output=tmp_path / "model", **small)
    with monkeypatch.context() as patch:
        patch.setattr(build.UNetTraining, "run", _killed_after(2, build.UNetTraining.run))
        with pytest.raises(KeyboardInterrupt):
            build.build(settings)
    assert not settings.output.exists()
    with pytest.raises(TrainError, match=r"seed: expected 0, given 1"):
        build.build(build.BuildSettings(output=settings.output, seed=1, **small))
    with monkeypatch.context() as patch:  # the finished parts are not trained again
        patch.setattr(build, "train_autoencoder", None)
        patch.setattr(build, "train_text_encoder", None)
        build.build(settings)
    for part in ("unet", "unet-weak", "vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        assert (settings.output / file).read_bytes() == (built / file).read_bytes(), part


def _killed_after(step: int, run: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: Any, *arguments: Any) -> Iterator[Any]:
        for reached, unet in run(self, *arguments):
            yield reached, unet
            if reached == step:
                raise KeyboardInterrupt

    return wrapped


def test_judging_does_not_depend_on_the_batch(built: Path) -> None:
    pipe, held_out = SHAPES.load(folder=built), prompts("held-out", 5)
    seen: list[torch.Tensor] = []

    def change(noise: torch.Tensor, conditioning: object) -> torch.Tensor:
        seen.append(noise)
        return noise

    judging.strict_rate(pipe, held_out, change, steps=1, batch=2)
    judging.strict_rate(pipe, held_out, change, steps=1, batch=5)
    assert torch.equal(torch.cat(seen[:3]), seen[3])


INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"


@pytest.mark.parametrize("damage", ["altered", "missing", "manifest", "index", "link"])
def test_damage_is_found_before_anything_is_opened(built: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(built, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "altered":
        alter(weights)
    elif damage == "missing":
        weights.unlink()
    elif damage == "index":
        (folder / INDEX).write_text("{}")
    elif damage == "link":  # its files are as listed
        (folder / "unet").rename(tmp_path / "unet")
        (folder / "unet").symlink_to(tmp_path / "unet")
    else:
        (folder / MANIFEST).write_text("[]")
    with pytest.raises(AssetsError, match=r"npnet_training\.shapes\.build"):
        SHAPES.load(folder=folder)


@pytest.mark.parametrize("part", ["model_index.json", "unet", "unet-weak", "vae", "licence"])
def test_a_manifest_must_be_that_of_a_model(built: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(built, folder)
    if part == "licence":
        listing = json.loads((folder / MANIFEST).read_text())
        del listing["licence"]
        (folder / MANIFEST).write_text(json.dumps(listing))
    else:
        (shutil.rmtree if (folder / part).is_dir() else os.remove)(folder / part)
        SHAPES.write_manifest(folder)
    with pytest.raises(AssetsError, match=rf"lists no {part}|names no {part}"):
        SHAPES.check(folder, ["main", "weak"])
    if part == "unet-weak":
        SHAPES.check(folder)


def test_what_diffusers_cannot_load(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(built, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    SHAPES.write_manifest(folder)
    with pytest.raises(AssetsError, match="diffusers cannot load it"):
        SHAPES.load(folder=folder)


def test_weak_must_be_a_step_that_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--output", str(tmp_path / "model"), "--weak", "7"]) == 2
    assert "weak: expected a multiple of 500" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_output_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--output", str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert not tmp_path.with_name(tmp_path.name + ".work").exists()


def test_autoencoder_learns_and_is_repeatable() -> None:
    scenes = draw_scenes(64, seed=0)
    losses: list[float] = []

    def train() -> Any:
        report = lambda _, __, loss: losses.append(loss)  # noqa: E731
        return train_autoencoder(make_autoencoder, scenes.images, 12, 16, 4e-3, 0, report)

    first, again = train(), train()
    assert losses[:12] == losses[12:]
    assert losses[11] < 0.7 * losses[0]
    assert torch.equal(first.decoder.conv_in.weight, again.decoder.conv_in.weight)


def test_an_epoch_has_each_scene_once() -> None:
    first, second = (
        torch.cat([rows_of(step, 12, 4, seed=0) for step in range(start, start + 3)]) for start in (0, 3)
    )
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()


def test_decoder_learns_and_the_latents_stay() -> None:
    scenes = draw_scenes(64, seed=0)
    vae = train_autoencoder(make_autoencoder, scenes.images, 8, 16, 4e-3, 0, lambda stage, step, loss: None)
    latents = encode(vae, scenes.images)
    losses: list[float] = []
    train_decoder(
        vae, [(scenes.images, latents)], 12, 16, 3e-3, 0, lambda stage, step, loss: losses.append(loss)
    )
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert torch.equal(encode(vae, scenes.images), latents)

"""The whole of the build with a handful of steps; what long training gives is recorded beside the weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from npnet_training.sampling import Denoiser, SampleSettings, draw_noise, sample_images
from npnet_training.shapes import assets, build, judging
from npnet_training.shapes.data import Batches, draw_scenes
from npnet_training.shapes.grammar import prompts
from npnet_training.shapes.networks import TOKENS, WIDTH, WORDS, make_tokenizer
from npnet_training.shapes.train_autoencoder import train_autoencoder

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "model"
    steps = {"autoencoder_steps": 3, "text_steps": 3, "unet_steps": 4, "save_every": 2, "main": 4, "weak": 2}
    build.build(build.BuildSettings(output=folder, scenes=64, judged=2, **steps))
    return folder


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    steps = {"autoencoder_steps": 3, "text_steps": 3, "unet_steps": 4, "save_every": 2, "main": 4, "weak": 2}
    settings = build.BuildSettings(output=tmp_path / "model", scenes=64, judged=2, device="cuda", **steps)
    assert build.build(settings)["device"] != "cpu"
    assets.check(tmp_path / "model")


def test_a_word_is_a_token() -> None:
    tokenizer = make_tokenizer()
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 3, word
    longest = max(prompts("train", 500), key=len)
    assert len(tokenizer(longest).input_ids) <= TOKENS


def test_pipeline_makes_images_and_is_a_diffusers_folder(built: Path) -> None:
    pipe = assets.load_pipeline(folder=built)
    pipe.set_progress_bar_config(disable=True)
    denoiser = Denoiser(pipe)
    assert denoiser.latent_shape == (4, 16, 16)
    assert denoiser.text_shape == (TOKENS, WIDTH)
    noise = draw_noise([1, 2], denoiser.latent_shape)
    images = sample_images(
        pipe, ["a red circle", "a blue cross"], noise, SampleSettings(steps=2, guidance=2.0)
    )
    assert [image.size for image in images] == [(32, 32)] * 2
    from diffusers import DiffusionPipeline

    ordinary = DiffusionPipeline.from_pretrained(built, local_files_only=True)
    assert ordinary.scheduler.config.timestep_spacing == "trailing"


def test_weak_is_another_denoiser_with_the_same_rest(built: Path) -> None:
    main, weak = assets.load_pipeline(folder=built), assets.load_pipeline(folder=built, unet="weak")
    assert torch.equal(main.vae.decoder.conv_in.weight, weak.vae.decoder.conv_in.weight)
    assert not torch.equal(main.unet.conv_in.weight, weak.unet.conv_in.weight)


def test_metrics_are_kept(built: Path) -> None:
    metrics = json.loads((built / "metrics.json").read_text())
    assert [look["step"] for look in metrics["denoiser"]] == [2, 4]
    assert metrics["settings"]["seed"] == 0


def test_judging_does_not_depend_on_the_batch(built: Path) -> None:
    pipe, held_out = assets.load_pipeline(folder=built), prompts("held-out", 5)
    seen: list[torch.Tensor] = []

    def change(noise: torch.Tensor, conditioning: object) -> torch.Tensor:
        seen.append(noise)
        return noise

    judging.strict_rate(pipe, held_out, change, steps=1, batch=2)
    judging.strict_rate(pipe, held_out, change, steps=1, batch=5)
    assert torch.equal(torch.cat(seen[:3]), seen[3])


@pytest.mark.parametrize("damage", ["altered", "missing", "manifest"])
def test_damage_is_found_before_anything_is_opened(built: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(built, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "altered":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / assets.MANIFEST).write_text("[]")
    with pytest.raises(assets.ShapesAssetsError, match=r"npnet_training\.shapes\.build"):
        assets.load_pipeline(folder=folder)


def test_main_must_be_a_step_that_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--scenes 8 --autoencoder-steps 1 --text-steps 1 --unet-steps 1 --save-every 1 --judged 1"
    assert build.main(["--output", str(tmp_path / "model"), *small.split(), "--main", "7"]) == 2
    assert "--main" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_autoencoder_learns_and_is_repeatable() -> None:
    scenes = draw_scenes(64, seed=0)
    losses: list[float] = []
    train = lambda: train_autoencoder(scenes, 12, 16, 4e-3, 0, lambda _, __, loss: losses.append(loss))  # noqa: E731
    first, again = train(), train()
    assert losses[:12] == losses[12:]
    assert losses[11] < 0.7 * losses[0]
    assert torch.equal(first.decoder.conv_in.weight, again.decoder.conv_in.weight)


def test_an_epoch_has_each_scene_once() -> None:
    batches = Batches(12, 4, seed=0)
    assert sorted(torch.cat([next(batches) for _ in range(3)]).tolist()) == list(range(12))

"""The second model, made from nothing in a few steps: a FLUX that diffusers opens, resumed after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from npnet_runtime.integrations.diffusers.checks import judge
from npnet_runtime.integrations.diffusers.loading import dtype_option
from npnet_training.embedded import AssetsError
from npnet_training.errors import TrainError
from npnet_training.models import load_pipeline
from npnet_training.sampling import Denoiser
from npnet_training.scenes import build as module
from npnet_training.scenes.build import BuildSettings, build
from npnet_training.scenes.data import draw_scenes
from npnet_training.scenes.grammar import WORDS, Scene, prompts
from npnet_training.scenes.judging import judged
from npnet_training.scenes.networks import CHANNELS, TOKENS, make_autoencoder, make_tokenizer
from npnet_training.scenes.pipeline import ScenesPipeline
from npnet_training.scenes.train_text_encoder import train_text_encoders
from npnet_training.scenes.train_transformer import Latents, TransformerTraining, pack
from npnet_training.shapes.train_text_encoder import tokenize
from support.damage import alter
from support.worlds import SMALL

FLOAT = dtype_option(torch.float32)


def test_an_ordinary_flux(built: Path) -> None:
    pipe = FluxPipeline.from_pretrained(built, **FLOAT)
    call = {"num_inference_steps": 2, "height": 64, "width": 48, "max_sequence_length": TOKENS}
    image = pipe("a red circle", output_type="np", generator=torch.Generator().manual_seed(0), **call).images
    assert image.shape == (1, 64, 48, 3)
    own = ScenesPipeline.from_pretrained(built, **FLOAT)
    assert judge(type(own)).supported
    size = own("a red circle", output_type="np", num_inference_steps=1).images.shape
    assert size == (1, 64, 64, 3)  # without a word of its size
    same = own(
        "a red circle", height=64, width=48, num_inference_steps=2, output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert np.array_equal(image, same)
    denoiser = Denoiser(own, (64, 48), {"max_sequence_length": TOKENS})
    assert denoiser.latent_shape == (CHANNELS, 8, 6)
    assert not (built / "vae" / "config.json").read_text().count("work")


def test_metrics_say_what_was_seen(built: Path) -> None:
    metrics = json.loads((built / "metrics.json").read_text())
    assert metrics["main"]["prompts"] == 10
    assert [look["step"] for look in metrics["looks"]] == [4]
    for name in ("plain", "guided"):
        assert 0 <= metrics["main"][name]["strict"] <= 1
        assert sum(metrics["main"][name]["failures"].values()) in (0, pytest.approx(1))


def test_goes_on_after_a_kill(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "model"
    settings = BuildSettings(output=output, **SMALL["scenes"])
    plain = TransformerTraining.save

    def dies(self: TransformerTraining, path: Path) -> None:
        plain(self, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TransformerTraining, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            build(settings)
    assert not output.exists()
    with pytest.raises(TrainError, match="was begun with other settings"):
        build(BuildSettings(output=output, **SMALL["scenes"] | {"seed": 1}))
    monkeypatch.setattr(module, "train_text_encoders", None)  # is not trained again
    build(settings)
    for name in ("transformer", "checkpoints/2/transformer", "vae"):
        file = f"{name}/diffusion_pytorch_model.safetensors"
        assert (output / file).read_bytes() == (built / file).read_bytes()
    with pytest.raises(TrainError, match="exists; give another"):
        build(settings)


def test_every_word_is_a_token() -> None:
    tokenizer = make_tokenizer()
    for prompt in [*prompts("held-out", 200), " ".join(WORDS[:12])]:
        ids = tokenize(tokenizer, [prompt])[0].tolist()
        assert len(ids) == TOKENS
        assert 2 not in ids  # the unknown
        assert ids[len(prompt.split())] == 1  # the end
    assert 2 in tokenize(tokenizer, ["a pink elephant"])[0].tolist()


def test_the_velocity_is_learned_on_what_is_packed() -> None:
    """A batch that comes again and again is fitted, and packing is FLUX's own."""
    latents = torch.arange(2 * 16 * 4 * 6.0).view(2, 16, 4, 6)
    packed = pack(latents)
    assert packed.shape == (2, 6, 64)
    assert torch.equal(FluxPipeline._unpack_latents(packed, 16, 24, 4), latents)
    scenes, counts = draw_scenes(8, 0)
    losses: list[float] = []
    encoder, pooled = train_text_encoders(
        scenes, counts, 12, 8, 2e-3, 0, lambda stage, step, loss: losses.append(loss)
    )
    assert losses[-1] < losses[0]
    seen: list[float] = []
    clean = torch.randn(8, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = tokenize(make_tokenizer(), scenes.prompts)
    empty = tokenize(make_tokenizer(), [""])[0]
    training = TransformerTraining(
        [Latents(clean, ids, scenes.layouts)], empty, encoder, pooled, batch=8, rate=3e-3, seed=0,
        report=lambda stage, step, loss: seen.append(loss),
    )  # fmt: skip
    training.warm_up = 1
    for _ in training.run(12, 12):
        pass
    assert np.mean(seen[-3:]) < np.mean(seen[:3])
    assert make_autoencoder().config.latent_channels == CHANNELS


def test_images_are_judged_from_the_noise_that_is_given(built: Path) -> None:
    pipe = ScenesPipeline.from_pretrained(built, **FLOAT)
    pipe.set_progress_bar_config(disable=True)
    held_out = prompts("held-out", 3)
    seen: list[tuple[int, ...]] = []

    def change(noise: torch.Tensor, conditioning: Any) -> torch.Tensor:
        seen.append(tuple(noise.shape))
        assert conditioning.texts == tuple(held_out[len(seen) * 2 - 2 : len(seen) * 2])
        return noise

    rows = judged(pipe, held_out, change, steps=1, batch=2, size=(48, 64))
    assert [row.kind for row in rows] == [Scene.parse(prompt).kind for prompt in held_out]
    assert seen == [(2, 16, 6, 8), (1, 16, 6, 8)]
    assert all(row.strict == (row.failure is None) for row in rows)


def test_the_folder_is_known_as_the_worlds(built: Path, tmp_path: Path) -> None:
    """By its manifest, so that images have the world's size without a word; an altered one is refused."""
    for folder in (built, built / "checkpoints" / "2"):
        pipe, about = load_pipeline(str(folder))
        assert isinstance(pipe, ScenesPipeline)
        assert about.pipeline_class == "ScenesPipeline"
        assert Denoiser(pipe).latent_shape == (CHANNELS, 8, 8)
    weights = [
        path / "transformer" / "diffusion_pytorch_model.safetensors"
        for path in (built, built / "checkpoints" / "2")
    ]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    copy = tmp_path / "model"
    shutil.copytree(built, copy)
    alter(copy / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(AssetsError, match=r"was altered.*scenes\.build"):
        load_pipeline(str(copy))

"""Layouts that are written into noise."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from npnet_training.embedded import SCENES
from npnet_training.sampling import draw_noise
from npnet_training.scenes.grammar import Scene, ScenesError, prompts
from npnet_training.scenes.layouts import GROUNDS, VARIANTS, LayoutWriter, lay_out
from npnet_training.scenes.placing import SIZES, Size, shows_held_out
from npnet_training.scenes.verify import verify
from npnet_training.shapes.render import paint


@pytest.mark.parametrize("size", SIZES)
def test_a_layout_is_true_and_shows_nothing_held_out(size: Size) -> None:
    found = 0
    for number, prompt in enumerate(prompts("train", 60)):
        scene = Scene.parse(prompt)
        try:
            placed = lay_out(scene, size, number % VARIANTS)
        except ScenesError:
            continue
        found += 1
        assert not shows_held_out(placed)
        ground = np.full((3, *size), GROUNDS[number % 2], dtype=np.float32)
        assert verify(paint(ground, placed, random.Random(0))[0], scene).strict, prompt
    assert found >= 55


def test_variants_differ_and_are_the_same_again() -> None:
    scene = Scene.parse("a red circle and two blue squares")
    layouts = [lay_out(scene, (64, 64), variant, seen=True) for variant in range(VARIANTS)]
    assert all(one != other for one, other in itertools.combinations(layouts, 2))
    assert lay_out(scene, (64, 64), 2, seen=True) == layouts[2]


def test_what_is_held_out_has_no_layout_to_train_on() -> None:
    prompt = next(text for text in prompts("held-out", 400) if Scene.parse(text).kind == "relation")
    with pytest.raises(ScenesError, match="plain layout in 64x64"):
        lay_out(Scene.parse(prompt), (64, 64))
    lay_out(Scene.parse(prompt), (64, 64), seen=True)


@pytest.fixture(scope="module")
def writer() -> LayoutWriter:
    return LayoutWriter(SCENES.load().vae, (64, 64), 0.5)


def test_writing_keeps_the_norm_and_depends_on_noise_and_prompt_alone(writer: LayoutWriter) -> None:
    noise = draw_noise(range(6), (16, 8, 8))
    scenes = [Scene.parse(prompt) for prompt in prompts("train", 6)]
    golden = writer.write(noise, scenes)
    assert torch.allclose(golden.flatten(1).norm(dim=1), noise.flatten(1).norm(dim=1), rtol=1e-4)
    cosine = torch.cosine_similarity(golden.flatten(1), noise.flatten(1))
    assert (cosine > 0.8).all()
    assert (cosine < 0.97).all()
    assert torch.allclose(writer.write(noise[2:3], scenes[2:3]), golden[2:3], atol=1e-4)


def test_what_is_written_is_an_image_of_the_prompt(writer: LayoutWriter) -> None:
    scenes = [Scene.parse(prompt) for prompt in prompts("train", 8)]
    written = LayoutWriter(writer.vae, (64, 64), 1e6).write(draw_noise(range(8), (16, 8, 8)), scenes)

    def true_at(norm: float) -> int:  # the latents' own norm is lost
        latents = norm * written / written.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        with torch.no_grad():
            images = writer.vae.decode(latents / writer.vae.config.scaling_factor).sample
        seen = (images / 2 + 0.5).clamp(0, 1).numpy()
        return sum(verify(image, scene).strict for image, scene in zip(seen, scenes, strict=True))

    assert max(true_at(norm) for norm in (24, 27, 30, 33, 36)) >= 6


def test_a_scene_without_a_layout_is_not_kept(writer: LayoutWriter) -> None:
    prompt = next(text for text in prompts("held-out", 400) if Scene.parse(text).kind == "relation")
    golden = writer.write(
        draw_noise(range(2), (16, 8, 8)), [Scene.parse(prompt), Scene.parse("a red circle")]
    )
    assert golden[0].isnan().all()
    assert golden[1].isfinite().all()

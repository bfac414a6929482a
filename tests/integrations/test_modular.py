"""The block for Modular Diffusers, in diffusers' own text-to-image blocks for SDXL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks

from npnet_runtime import GoldenNoise
from npnet_runtime.errors import InputError
from npnet_runtime.integrations.diffusers.modular import GoldenNoiseStep


def modular(sdxl: Any, golden: GoldenNoise | None) -> Callable[..., np.ndarray]:
    blocks = StableDiffusionXLAutoBlocks().get_workflow("text2image")
    if golden is not None:
        place = list(blocks.sub_blocks).index("denoise.before_denoise.prepare_latents")
        blocks.sub_blocks.insert("golden_noise", GoldenNoiseStep(golden), place)
    pipe = blocks.init_pipeline()
    pipe.update_components(**{name: part for name, part in sdxl.components.items() if part is not None})
    pipe.set_progress_bar_config(disable=True)

    def run(prompt: Any = "a red cat", **options: Any) -> np.ndarray:
        options = {"generator": torch.Generator().manual_seed(7)} | options
        return pipe(prompt=prompt, num_inference_steps=2, output_type="np", output="images", **options)

    return run


def embeds(sdxl: Any, *prompts: str) -> torch.Tensor:
    return sdxl.encode_prompt(list(prompts), device="cpu", do_classifier_free_guidance=False)[0]


def test_golden(golden: GoldenNoise, sdxl: Any) -> None:
    plain, golden_noise = modular(sdxl, None), modular(sdxl, golden)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    expected = plain(latents=golden(noise, embeds(sdxl, "a red cat")))
    assert np.array_equal(golden_noise(), expected)
    assert np.array_equal(golden_noise(latents=noise), expected)
    assert not np.array_equal(plain(), expected)


def test_images_per_prompt(golden: GoldenNoise, sdxl: Any) -> None:
    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    made = golden(noise, embeds(sdxl, "a red cat", "two dogs"))
    prompts = ["a red cat", "two dogs"]
    expected = modular(sdxl, None)(prompts, latents=made, num_images_per_prompt=2)
    assert np.array_equal(modular(sdxl, golden)(prompts, num_images_per_prompt=2), expected)


@pytest.mark.usefixtures("identity")
def test_all_else_is_as_before(golden: GoldenNoise, sdxl: Any) -> None:
    states = []
    for engine in (None, golden):
        generator = torch.Generator().manual_seed(7)
        states.append((modular(sdxl, engine)(generator=generator), generator.get_state()))
    (plain, before), (given, after) = states
    assert np.array_equal(given, plain)
    assert torch.equal(after, before)


def test_refuses(golden: GoldenNoise, sdxl: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    state, run = generator.get_state(), modular(sdxl, golden)
    with pytest.raises(InputError, match="noise: expected shape"):
        run(generator=generator, height=48, width=48)
    assert torch.equal(generator.get_state(), state)
    with pytest.raises(ValueError, match="list of generators of length 3"):
        run(generator=[generator] * 3)

"""Golden noise by a LoRA on the pipeline's own denoiser."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from npnet_runtime import GoldenLora, GoldenNoise
from npnet_runtime.errors import BundleError, CheckpointError, InputError, PipelineError
from npnet_runtime.integrations.diffusers.adapter import (
    adaptable_layers,
    add_adapter,
    denoiser_of,
    watching_last,
)
from npnet_runtime.integrations.diffusers.latent_space import latent_space_of
from npnet_runtime.integrations.diffusers.lora_file import FILENAME, LoraConfig, find_lora, write_lora
from npnet_training.sampling import Denoiser, draw_noise
from support.flow_pipelines import FLOWS, OPTIONS, SIZE, flux, sd3
from support.pipelines import PIPELINES, stable_diffusion

EVERY = {**PIPELINES, **FLOWS}
TIMESTEP = {"sana-sprint": 1.5}


def write(pipe: Any, name: str, path: Path, *, scale: float = 0.05) -> Path:
    """A LoRA for a pipeline, of random weights."""
    module = denoiser_of(pipe)
    with watching_last(module) as last:
        call(pipe, name)
        found = last()
    adapter = add_adapter(module, adaptable_layers(module), 4, found)
    generator = torch.Generator().manual_seed(0)
    for weight_name, weight in adapter.weights.items():
        drawn = torch.randn(weight.shape, generator=generator) * scale
        weight.data = torch.zeros_like(weight) if scale == 0 and "lora_B" in weight_name else drawn
    space = latent_space_of(pipe)
    component = "unet" if hasattr(pipe, "unet") else "transformer"
    config = LoraConfig(
        name, component, type(module).__name__, noise_of(pipe, name).shape[1], 4, found,
        TIMESTEP.get(name, 999.0), None if space is None else space.to_dict(),
    )  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    write_lora(path / FILENAME, adapter.weights, config)
    adapter.remove()
    return path


def noise_of(pipe: Any, name: str) -> Tensor:
    size = (SIZE, SIZE) if name in FLOWS else None
    return draw_noise([0], Denoiser(pipe, size, OPTIONS.get(name, {})).latent_shape)


def call(pipe: Any, name: str, **options: Any) -> Tensor:
    sized = {"height": SIZE, "width": SIZE} if name in FLOWS else {}
    fixed = {"prompt": "a red cat", "num_inference_steps": 2, "output_type": "latent"}
    given = {**fixed, **sized, **OPTIONS.get(name, {}), **options}
    return pipe(**given, generator=torch.Generator().manual_seed(7)).images


@pytest.mark.parametrize("name", EVERY)
def test_serves_every_pipeline_and_leaves_it(name: str, tmp_path: Path) -> None:
    pipe = EVERY[name]()
    denoiser_of(pipe).requires_grad_(False)
    before = [*denoiser_of(pipe).state_dict()]
    plain = call(pipe, name)
    golden = GoldenLora(write(pipe, name, tmp_path))
    golden.attach(pipe)
    changed = call(pipe, name)
    assert changed.isfinite().all()
    assert (changed - plain).abs().max() > 1e-4
    assert torch.equal(call(pipe, name), changed)
    assert "one evaluation" in golden.report()
    golden.detach(pipe)
    assert torch.equal(call(pipe, name), plain)
    assert [*denoiser_of(pipe).state_dict()] == before
    golden.using(strength=0.0).attach(pipe)
    assert torch.equal(call(pipe, name), plain)
    golden.detach(pipe)


@pytest.mark.parametrize("name", ["stable-diffusion", "flux-dev", "z-image"])
def test_one_that_has_learned_nothing_changes_nothing(name: str, tmp_path: Path) -> None:
    pipe = EVERY[name]()
    denoiser_of(pipe).requires_grad_(False)
    plain = call(pipe, name)
    golden = GoldenLora(write(pipe, name, tmp_path, scale=0.0))
    golden.attach(pipe)
    assert torch.equal(call(pipe, name), plain)


def test_every_noise_has_its_own_prompt_and_guidance_stays(tmp_path: Path) -> None:
    pipe = stable_diffusion()
    golden = GoldenLora(write(pipe, "stable-diffusion", tmp_path))
    golden.attach(pipe)
    prompts = ["a red cat", "two dogs"]
    options: dict[str, Any] = {"num_images_per_prompt": 2, "guidance_scale": 4.0}
    options |= {"num_inference_steps": 1, "output_type": "latent"}
    both = pipe(prompts, generator=seeded(4), **options).images
    for row, prompt in enumerate(prompts):
        own = slice(2 * row, 2 * row + 2)
        alone = pipe(prompt, generator=seeded(4)[own], **options).images
        torch.testing.assert_close(both[own], alone, atol=1e-5, rtol=1e-5)


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_given_latents_are_golden_or_stay(tmp_path: Path) -> None:
    pipe = flux()
    golden = GoldenLora(write(pipe, "flux-dev", tmp_path))
    noise = draw_noise([3], (16, SIZE // 8, SIZE // 8))
    packed = pipe._pack_latents(noise, 1, 16, SIZE // 8, SIZE // 8)
    plain = call(pipe, "flux-dev", latents=packed)
    golden.attach(pipe, given_latents="as-is")
    assert torch.equal(call(pipe, "flux-dev", latents=packed), plain)
    golden.detach(pipe)
    golden.attach(pipe)
    assert not torch.equal(call(pipe, "flux-dev", latents=packed), plain)


def test_a_style_beside_it(tmp_path: Path) -> None:
    """Other LoRAs of the pipeline are used in every evaluation, and stay when it goes."""
    pipe = stable_diffusion()
    style = pipe.unet
    from peft import LoraConfig as PeftConfig

    style.add_adapter(PeftConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")
    styled = call(pipe, "stable-diffusion")
    golden = GoldenLora(write(pipe, "stable-diffusion", tmp_path))
    golden.attach(pipe)
    assert not torch.equal(call(pipe, "stable-diffusion"), styled)
    golden.detach(pipe)
    assert torch.equal(call(pipe, "stable-diffusion"), styled)
    assert style.active_adapters() == ["style"]


def test_an_ordinary_lora_of_diffusers(tmp_path: Path) -> None:
    pipe = stable_diffusion()
    path = write(pipe, "stable-diffusion", tmp_path)
    plain = call(pipe, "stable-diffusion")
    pipe.load_lora_weights(path, weight_name=FILENAME, adapter_name="it")
    assert not torch.equal(call(pipe, "stable-diffusion"), plain)
    assert find_lora(path) == path / FILENAME
    assert find_lora(tmp_path / "nothing") is None


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    pipe = stable_diffusion()
    path = write(pipe, "stable-diffusion", tmp_path)
    golden = GoldenLora(path)
    with pytest.raises(PipelineError, match="expected a pipeline with the UNet2DConditionModel"):
        golden.attach(flux())
    golden.attach(pipe)
    with pytest.raises(PipelineError, match="detach it first"):
        golden.attach(pipe)
    with pytest.raises(InputError, match="attach it"):
        golden(torch.zeros(1, 4, 8, 8), None)
    with pytest.raises(CheckpointError, match="expected a LoRA of golden noise"):
        GoldenLora(tmp_path / "nothing")
    with pytest.raises(BundleError, match="GoldenLora"):
        GoldenNoise(path)
    other = sd3()
    with pytest.raises(PipelineError, match="not|attached"):
        golden.detach(other)
    assert copy.deepcopy(golden) is golden


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write(stable_diffusion(), "stable-diffusion", tmp_path) / FILENAME
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, path, metadata)
    with pytest.raises(CheckpointError, match="is not finite"):
        GoldenLora(tmp_path)
    wrong = {key: value.replace('"rank": 4', '"rank": "four"') for key, value in metadata.items()}
    save_file(tensors, path, wrong)
    with pytest.raises(CheckpointError, match="malformed"):
        GoldenLora(tmp_path)
    save_file({k: v for k, v in tensors.items() if "conv_out" not in k}, path, metadata)
    with pytest.raises((PipelineError, CheckpointError), match="last layer|conv_out"):
        GoldenLora(tmp_path).attach(stable_diffusion())

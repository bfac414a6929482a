"""The weight of a prompt for models that have no guidance to turn (RF-Sampling)."""

from __future__ import annotations

import pytest
import torch

from npnet_training.errors import SettingsError
from npnet_training.sampling import Conditioning, Denoiser, RedenoiseSettings, draw_noise, redenoise
from support.flow_pipelines import SIZE, flux, sana, z_image
from support.pipelines import sdxl


def test_embeddings_against_the_empty_ones() -> None:
    random = torch.Generator().manual_seed(0)
    value, free = (torch.randn(shape, generator=random) for shape in ((2, 5, 3), (1, 3, 3)))
    pooled, none = (torch.randn(shape, generator=random) for shape in ((2, 4), (1, 4)))
    mask, there = torch.tensor([[1, 1, 1, 1, 0], [1] * 5]), torch.tensor([[1, 1, 0]])
    prompts = Conditioning(
        {"prompt_embeds": value, "prompt_embeds_mask": mask, "pooled_prompt_embeds": pooled}
    )
    empty = Conditioning({"prompt_embeds": free, "prompt_embeds_mask": there, "pooled_prompt_embeds": none})
    mixed = prompts.mixed(empty, 3.0).positive
    torch.testing.assert_close(mixed["prompt_embeds"][:, :2], 3 * value[:, :2] - 2 * free[:, :2])
    assert torch.equal(mixed["prompt_embeds"][:, 2:], value[:, 2:])  # the empty prompt has no such tokens
    torch.testing.assert_close(mixed["pooled_prompt_embeds"], 3 * pooled - 2 * none)
    assert torch.equal(mixed["prompt_embeds_mask"], mask)
    rows = Conditioning({"prompt_embeds": [value[0, :2], value[1]]})
    lists = rows.mixed(Conditioning({"prompt_embeds": [free[0]]}), 3.0).positive["prompt_embeds"]
    torch.testing.assert_close(lists[0], 3 * value[0, :2] - 2 * free[0, :2])
    torch.testing.assert_close(lists[1][:3], 3 * value[1, :3] - 2 * free[0])
    assert torch.equal(lists[1][3:], value[1, 3:])


@pytest.mark.parametrize("make", [flux, sana, z_image])
def test_redenoised_by_the_weight_of_the_prompt(make) -> None:
    denoiser = Denoiser(make(), (SIZE, SIZE))
    prompts = denoiser.encode(["a red cup", "two cats"])
    noise = draw_noise([0, 1], denoiser.latent_shape)
    settings = RedenoiseSettings(steps=4, weight="text-mix", text_mix=2.5, inversion_text_mix=0.5)
    golden = redenoise(denoiser, noise, prompts, settings)
    first, second = (float(step) for step in denoiser.timesteps(4)[:2])
    guidance = {"embedded": 3.5}.get(denoiser.guidance.kind, denoiser.guidance.default)

    def velocity(latents: torch.Tensor, step: float, weight: float) -> torch.Tensor:
        found = denoiser.denoise(latents, step, prompts.mixed(denoiser.empty, weight), guidance)
        return found.noise - found.clean

    with torch.no_grad():
        high = velocity(noise, first, 2.5)
        low = velocity(noise + (second - first) / 1000 * high, second, 0.5)
    torch.testing.assert_close(golden, noise + (first - second) / 1000 * (low - high), atol=1e-5, rtol=1e-4)
    assert (golden - noise).abs().max() > 1e-4


def test_what_a_model_has() -> None:
    flow, mixed = Denoiser(flux(), (SIZE, SIZE)), Denoiser(sdxl())
    schnell = Denoiser(flux(guidance=False), (SIZE, SIZE))
    auto = RedenoiseSettings()
    assert [auto.weight_for(one) for one in (flow, mixed, schnell)] == ["embedded", "guidance", "text-mix"]
    assert RedenoiseSettings(weight="guidance").weight_for(schnell) == "guidance"  # true CFG, if asked for
    with pytest.raises(SettingsError, match="expected embedded or text-mix.*FluxPipeline is embedded"):
        RedenoiseSettings(weight="guidance").weight_for(flow)
    with pytest.raises(SettingsError, match="expected guidance or text-mix"):
        RedenoiseSettings(weight="embedded").weight_for(mixed)

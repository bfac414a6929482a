"""Re-denoise sampling against the closed form and the schedulers of diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from npnet_training.errors import SettingsError
from npnet_training.sampling import Denoiser, RedenoiseSettings, draw_noise, redenoise
from support import families

PROMPTS = ["a red cup", "two cats"]
Make = Callable[..., Denoiser]


def inputs(denoiser: Denoiser) -> tuple[Tensor, Any]:
    return draw_noise([3, 4], denoiser.latent_shape), denoiser.encode(PROMPTS)


def alphas_cumprod(denoiser: Denoiser) -> Tensor:
    return diffusers.DDIMScheduler.from_config(denoiser.pipe.scheduler.config).alphas_cumprod.double()


@torch.no_grad()
def closed_form(denoiser: Denoiser, solver: str, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The formula of the issue, with the predictions along the step."""
    noise, conditioning = inputs(denoiser)
    first, second = (int(step) for step in denoiser.timesteps(10, solver)[:2])
    a0, a1 = (float(alphas_cumprod(denoiser)[step]) for step in (first, second))
    eps_high = denoiser.predict(noise, first, conditioning, high)
    after = math.sqrt(a1 / a0) * (noise - math.sqrt(1 - a0) * eps_high) + math.sqrt(1 - a1) * eps_high
    eps_low = denoiser.predict(after, second, conditioning, low)
    factor = math.sqrt(1 - a0) - math.sqrt(a0 / a1) * math.sqrt(1 - a1)
    return noise, factor * (eps_low - eps_high)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_consistent_is_the_closed_form(any_denoiser: Denoiser, solver: str) -> None:
    noise, conditioning = inputs(any_denoiser)
    source, change = closed_form(any_denoiser, solver, 1.0, 5.5)
    golden = redenoise(any_denoiser, noise, conditioning, RedenoiseSettings(solver=solver))
    assert golden.shape == noise.shape
    assert golden.dtype == torch.float32
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(golden - source, change, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["sdxl", "stable-diffusion", "hunyuan-dit"])
def test_v_prediction(with_scheduler: Make, name: str) -> None:
    denoiser = with_scheduler(name, prediction_type="v_prediction")
    noise, conditioning = inputs(denoiser)
    source, change = closed_form(denoiser, "ddim", 1.0, 5.5)
    golden = redenoise(denoiser, noise, conditioning, RedenoiseSettings())
    torch.testing.assert_close(golden - source, change, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
@pytest.mark.parametrize(
    ("scheduler", "config"),
    [
        (
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ],
)
def test_flow_prediction(with_scheduler: Make, scheduler: str, config: dict[str, Any], solver: str) -> None:
    denoiser = with_scheduler("sdxl", scheduler, **config)
    noise, conditioning = inputs(denoiser)
    first, second = (float(step) for step in denoiser.timesteps(10)[:2])
    assert 990 < first <= 1000
    assert second == pytest.approx(1000 * 3 * 0.9 / (1 + 2 * 0.9), rel=0.01)
    with torch.no_grad():
        velocity = _velocity(denoiser, noise, first, conditioning, 5.5)
        after = noise + (second - first) / 1000 * velocity
        change = (first - second) / 1000 * (_velocity(denoiser, after, second, conditioning, 1.0) - velocity)
    golden = redenoise(denoiser, noise, conditioning, RedenoiseSettings(solver=solver))
    torch.testing.assert_close(golden - noise, change, atol=2e-6, rtol=1e-4)
    with pytest.raises(SettingsError, match="use consistent"):
        redenoise(denoiser, noise, conditioning, RedenoiseSettings(convention="published"))


def _velocity(denoiser: Denoiser, latents: Tensor, step: float, conditioning: Any, guidance: float) -> Tensor:
    return families.output("sdxl", denoiser.pipe, latents, step, conditioning, guidance)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
@pytest.mark.parametrize("name", ["sdxl", "hunyuan-dit"])
def test_published_is_what_the_schedulers_of_diffusers_give(
    with_scheduler: Make, name: str, solver: str, spacing: str
) -> None:
    """The calls of the public code: the network told t_0 twice, the inverse given the second timestep."""
    denoiser = with_scheduler(name, timestep_spacing=spacing)
    noise, conditioning = inputs(denoiser)
    kinds = {"ddim": ("DDIMScheduler", "DDIMInverseScheduler")}
    kinds["dpm++"] = ("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler")
    forward, inverse = (
        getattr(diffusers, kind).from_config(denoiser.pipe.scheduler.config, clip_sample=False)
        for kind in kinds[solver]
    )
    forward.set_timesteps(10)
    inverse.set_timesteps(10)
    first, second = forward.timesteps[:2]
    with torch.no_grad():
        high = denoiser.predict(noise, first, conditioning, 5.5)
        after = forward.step(high, first, noise).prev_sample
        low = denoiser.predict(after, first, conditioning, 1.0)
        expected = inverse.step(low, second, after).prev_sample
    settings = RedenoiseSettings(convention="published", solver=solver)
    golden = redenoise(denoiser, noise, conditioning, settings)
    torch.testing.assert_close(golden, expected, atol=2e-5, rtol=1e-4)
    assert (golden - redenoise(denoiser, noise, conditioning, RedenoiseSettings(solver=solver))).std() > 1e-4


def test_equal_guidance_is_the_identity_where_the_prediction_is_constant(
    any_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise, conditioning = inputs(any_denoiser)
    fields = torch.randn(2, 2, *any_denoiser.latent_shape)

    learned = "transformer" in any_denoiser.pipe.components  # Hunyuan-DiT also gives the variance

    def constant(latents: Tensor, *_: object, **__: object) -> tuple[Tensor]:
        found = fields.flatten(0, 1) if len(latents) == 4 else fields[1]
        return (torch.cat([found, found], 1) if learned else found,)

    monkeypatch.setattr(any_denoiser.network, "forward", constant)
    for guidance in (1.0, 7.5):
        settings = RedenoiseSettings(guidance=guidance, inversion_guidance=guidance, repetitions=2)
        golden = redenoise(any_denoiser, noise, conditioning, settings)
        torch.testing.assert_close(golden, noise, atol=1e-4, rtol=0)
    assert (redenoise(any_denoiser, noise, conditioning, RedenoiseSettings()) - noise).std() > 0.01


def test_equal_guidance_approaches_the_identity_at_first_order(any_denoiser: Denoiser) -> None:
    """What is left is the change of the prediction along the step: halving the step quarters it."""
    noise, conditioning = inputs(any_denoiser)
    left = [
        (redenoise(any_denoiser, noise, conditioning, _equal(steps)) - noise).norm() / noise.norm()
        for steps in (20, 80)
    ]
    assert left[0] < 0.1
    assert left[1] < left[0] / 6


def _equal(steps: int) -> RedenoiseSettings:
    return RedenoiseSettings(steps=steps, guidance=1.0, inversion_guidance=1.0)


def test_batches_and_repetitions(any_denoiser: Denoiser) -> None:
    noise, conditioning = inputs(any_denoiser)
    once = RedenoiseSettings()
    together = redenoise(any_denoiser, noise, conditioning, once)
    alone = torch.cat(
        [redenoise(any_denoiser, noise[i : i + 1], conditioning[i : i + 1], once) for i in range(2)]
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    twice = redenoise(any_denoiser, noise, conditioning, RedenoiseSettings(repetitions=2))
    torch.testing.assert_close(twice, redenoise(any_denoiser, together, conditioning, once))


def test_bad_input(any_denoiser: Denoiser) -> None:
    noise, conditioning = inputs(any_denoiser)
    with pytest.raises(SettingsError, match="expected 2 prompts"):
        redenoise(any_denoiser, noise, conditioning[:1], RedenoiseSettings())
    bare = any_denoiser.encode(PROMPTS, unconditional=False)
    with pytest.raises(SettingsError, match="unconditional=True"):
        redenoise(any_denoiser, noise, bare, RedenoiseSettings())
    with pytest.raises(SettingsError, match="expected 1 to 1000"):
        redenoise(any_denoiser, noise, conditioning, RedenoiseSettings(steps=1001))

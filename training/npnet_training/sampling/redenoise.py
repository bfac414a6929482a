"""Re-denoise sampling: one guided step down, one step of inversion back (arXiv 2411.09502, section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from npnet_training.sampling.conditioning import Conditioning
from npnet_training.sampling.denoiser import Denoiser
from npnet_training.sampling.schedule import Level, Prediction, Solver
from npnet_training.settings import Settings


class RedenoiseSettings(Settings):
    """How a noise is made to carry more of its prompt."""

    steps: int = Field(default=10, ge=2)
    """Steps of the schedule whose first two timesteps are used."""
    guidance: float = Field(default=5.5, allow_inf_nan=False)
    """Guidance w_l of the denoising step; published: SDXL 5.5, DreamShaper 3.5, Hunyuan-DiT 5.0."""
    inversion_guidance: float = Field(default=1.0, allow_inf_nan=False)
    """Guidance w_w of the inversion."""
    convention: Literal["consistent", "published"] = "consistent"
    """Whether the inversion takes back the step, or is one timestep off as in the public code."""
    solver: Solver = "ddim"
    """Which timesteps are used, and under `published` whose inverse; published: dpm++ for DreamShaper."""
    repetitions: int = Field(default=1, ge=1)
    """How often, each time from the result of the last."""


@torch.no_grad()
def redenoise(
    denoiser: Denoiser, noise: Tensor, conditioning: Conditioning, settings: RedenoiseSettings
) -> Tensor:
    """Golden noise by re-denoise sampling, for a batch of noises and their prompts.

    With t_0, t_1 the first two timesteps, eps_high predicted from x_T at t_0 with guidance w_l, and a
    first-order step to x_1 at t_1, the inversion under `consistent` predicts eps_low from x_1 at t_1 with
    w_w and goes from t_1 back to t_0. For epsilon and v prediction that is

        x'_T = x_T + (sigma_0 - alpha_0 / alpha_1 sigma_1) (eps_low - eps_high)

    and for a flow x'_T = x_T + (sigma_0 - sigma_1) (v_low - v_high). With w_l = w_w it is the identity but
    for how much the prediction changes along the step; DDIM and the first step of DPM-Solver++ are the
    same function of the two levels, so that here the solvers differ by their timesteps only.

    Under `published` eps_low is predicted from x_1 at t_0, and the inversion runs between the levels that
    the calls in the public code lead to (`NoiseSchedule.published`).

    Args:
        denoiser: of the pipeline.
        noise: (B, C, H, W), standard normal.
        conditioning: of B prompts, with the negative one unless both guidance scales are 1.
        settings: see there.

    Returns:
        (B, C, H, W), float32, on the denoiser's device.

    Raises:
        SettingsError: guidance without the negative prompt, too many steps, or `published` for a flow.
    """
    schedule = denoiser.schedule
    first, second = denoiser.timesteps(settings.steps, settings.solver, noise.shape)[:2]
    if settings.convention == "published":
        down, source, target = schedule.published(settings.steps, settings.solver)
        inversion_at = first
    else:
        down = source = schedule.level(float(second))
        target = schedule.level(float(first))
        inversion_at = second
    latents = noise.to(denoiser.device, torch.float32)
    for _ in range(settings.repetitions):
        high = denoiser.denoise(latents, first, conditioning, settings.guidance)
        latents = at_level(high, down)
        low = denoiser.denoise(latents, inversion_at, conditioning, settings.inversion_guidance)
        if settings.convention == "published":
            # its coefficients are of a level other than the one the network was told
            low = Prediction((latents - source.sigma * low.noise) / source.alpha, low.noise)
        latents = at_level(low, target)
    return latents


def at_level(prediction: Prediction, level: Level) -> Tensor:
    """Latents at another level with the predicted clean latents and noise: DDIM's step with eta = 0."""
    return level.alpha * prediction.clean + level.sigma * prediction.noise

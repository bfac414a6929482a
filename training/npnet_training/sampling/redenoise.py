"""Re-denoise sampling: one guided step down, one step of inversion back (arXiv 2411.09502, section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from npnet_training.errors import SettingsError
from npnet_training.sampling.conditioning import Conditioning
from npnet_training.sampling.denoiser import Denoiser
from npnet_training.sampling.schedule import Level, Prediction, Solver
from npnet_training.settings import Settings

Weight = Literal["guidance", "embedded", "text-mix"]


class RedenoiseSettings(Settings):
    """How a noise is made to carry more of its prompt."""

    steps: int = Field(default=10, ge=2)
    """Steps of the schedule whose first two timesteps are used."""
    weight: Literal["auto", "guidance", "embedded", "text-mix"] = "auto"
    """What is turned up in the denoising step and down in the inversion: guidance of two predictions that are
    mixed, guidance that is an input of the denoiser, or the prompt's embedding against the empty one's, for
    models without guidance (RF-Sampling). auto takes the first that the pipeline has by default."""
    guidance: float = Field(default=5.5, allow_inf_nan=False)
    """Guidance w_l of the denoising step; published: SDXL 5.5, DreamShaper 3.5, Hunyuan-DiT 5.0."""
    inversion_guidance: float = Field(default=1.0, allow_inf_nan=False)
    """Guidance w_w of the inversion; where predictions are mixed, 1 is none."""
    text_mix: float = Field(default=3.0, allow_inf_nan=False)
    """Weight of the prompt in the denoising step under text-mix."""
    inversion_text_mix: float = Field(default=1.0, allow_inf_nan=False)
    """Weight of the prompt in the inversion; 1 is the prompt itself."""
    convention: Literal["consistent", "published"] = "consistent"
    """Whether the inversion takes back the step, or is one timestep off as in the public code."""
    solver: Solver = "ddim"
    """Which timesteps are used, and under `published` whose inverse; published: dpm++ for DreamShaper."""
    repetitions: int = Field(default=1, ge=1)
    """How often, each time from the result of the last."""

    def weight_for(self, denoiser: Denoiser) -> Weight:
        """What is turned up and down for a model.

        Raises:
            SettingsError: it was asked for, and the model does not have it; or guidance that it cannot give.
        """
        weight = self._weight_for(denoiser)
        lowest = min(self.guidance, self.inversion_guidance)
        if weight == "guidance" and lowest < 1:
            raise SettingsError(f"--redenoise guidance: expected 1, which is none, or more, given {lowest:g}")
        return weight

    def _weight_for(self, denoiser: Denoiser) -> Weight:
        kind = denoiser.guidance.kind
        own: dict[str, Weight] = {"mixed": "guidance", "embedded": "embedded"}
        if self.weight == "auto":
            return own[kind] if denoiser.guidance.by_default and kind in own else "text-mix"
        if self.weight not in ("text-mix", own.get(kind)):
            raise SettingsError(
                f"--redenoise.weight {self.weight}: expected {own.get(kind, 'text-mix')} or text-mix, for "
                f"the guidance of {type(denoiser.pipe).__name__} is {kind}"
            )
        return self.weight


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

    Under the weight `text-mix` eps_high and eps_low are predicted for `empty + w (prompt - empty)`, with the
    guidance that the pipeline has by default (RF-Sampling, arXiv 2603.06165).

    Args:
        denoiser: of the pipeline.
        noise: (B, C, H, W), standard normal.
        conditioning: of B prompts, with the negative one unless both guidance scales are 1.
        settings: see there.

    Returns:
        (B, C, H, W), float32, on the denoiser's device.

    Raises:
        SettingsError: guidance without the negative prompt, too many steps, `published` for a flow, or a
            weight that the model does not have.
        ModelError: a scheduler whose predictions cannot be inverted.
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
    up = down_again = conditioning
    scales: tuple[float, float] = settings.guidance, settings.inversion_guidance
    if settings.weight_for(denoiser) == "text-mix":
        up = conditioning.mixed(denoiser.empty, settings.text_mix)
        down_again = conditioning.mixed(denoiser.empty, settings.inversion_text_mix)
        scale = (denoiser.guidance.default or 1.0) if denoiser.guidance.by_default else 1.0
        scales = scale, scale
    for _ in range(settings.repetitions):
        high = denoiser.denoise(latents, first, up, scales[0])
        latents = at_level(high, down)
        low = denoiser.denoise(latents, inversion_at, down_again, scales[1])
        if settings.convention == "published":
            # its coefficients are of a level other than the one the network was told
            low = Prediction((latents - source.sigma * low.noise) / source.alpha, low.noise)
        latents = at_level(low, target)
    return latents


def at_level(prediction: Prediction, level: Level) -> Tensor:
    """Latents at another level with the predicted clean latents and noise: DDIM's step with eta = 0."""
    return level.alpha * prediction.clean + level.sigma * prediction.noise

"""Clean latents by DDIM (arXiv 2010.02502, equation 12), whatever the pipeline's own scheduler."""

from __future__ import annotations

import torch
from torch import Tensor

from npnet_training.sampling.conditioning import Conditioning
from npnet_training.sampling.denoiser import Denoiser
from npnet_training.sampling.redenoise import at_level


def sample_latents(
    denoiser: Denoiser, noise: Tensor, conditioning: Conditioning, steps: int, guidance: float
) -> Tensor:
    """Clean latents of noise, differentiable in the noise and the embeddings.

    Args:
        denoiser: of the pipeline.
        noise: (B, C, H, W), standard normal.
        conditioning: of B prompts.
        steps: of the pipeline's schedule.
        guidance: see `Denoiser.predict`.

    Returns:
        (B, C, H, W), float32.

    Raises:
        SettingsError: steps out of range, guidance without the negative prompt.
    """
    schedule = denoiser.schedule
    timesteps = [float(step) for step in denoiser.timesteps(steps, shape=noise.shape)]
    latents = noise.to(denoiser.device, torch.float32)
    for timestep, level in zip(timesteps, [*map(schedule.level, timesteps[1:]), schedule.final], strict=True):
        latents = at_level(denoiser.denoise(latents, timestep, conditioning, guidance), level)
    return latents

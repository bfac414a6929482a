"""Sampling that gradients run through (DDIM, arXiv 2010.02502, equation 12)."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from npnet_training.errors import SettingsError
from npnet_training.sampling.conditioning import Conditioning
from npnet_training.sampling.denoiser import Denoiser, Prediction
from npnet_training.sampling.schedule import Level


def sample_latents(
    denoiser: Denoiser,
    noise: Tensor,
    conditioning: Conditioning,
    steps: int,
    guidance: float,
    eta: float = 0.0,
    *,
    generator: Generator | None = None,
    checkpointing: bool = False,
    gradient_steps: int | None = None,
) -> Tensor:
    """Clean latents of noise, differentiable in the noise and the embeddings.

    Args:
        denoiser: of the pipeline.
        noise: (B, C, H, W), standard normal.
        conditioning: of B prompts.
        steps: of the pipeline's schedule.
        guidance: classifier-free guidance.
        eta: 0 is deterministic, 1 adds the noise of ancestral sampling.
        generator: of that noise, on the CPU; needed if eta is not 0.
        checkpointing: recompute each step in the backward pass, to keep the memory of one step only.
        gradient_steps: let gradients through the last so many steps only (truncated back-propagation,
            arXiv 2309.17400): the state they begin from is then taken as the noise plus a constant, so that
            the noise still has a gradient. None for all.

    Returns:
        (B, C, H, W), float32.

    Raises:
        SettingsError: eta without a generator, steps out of range, guidance without the negative prompt.
    """
    if not 0 <= eta <= 1 or (eta and generator is None):
        raise SettingsError(f"eta: expected 0, or up to 1 with a generator of its noise, given {eta}")
    if gradient_steps is not None and not 1 <= gradient_steps <= steps:
        raise SettingsError(f"gradient_steps: expected 1 to {steps} (the steps), given {gradient_steps}")
    schedule = denoiser.schedule
    timesteps = [float(step) for step in denoiser.timesteps(steps)]
    levels = [*(schedule.level(step) for step in timesteps), schedule.final]
    noise = noise.to(denoiser.device, torch.float32)
    latents = noise
    free = 0 if gradient_steps is None else steps - gradient_steps
    for index, timestep in enumerate(timesteps):
        if index == free and free:
            latents = latents + (noise - noise.detach())
        with torch.no_grad() if index < free else contextlib.nullcontext():
            arguments = (denoiser, latents, timestep, conditioning, guidance)
            if checkpointing and torch.is_grad_enabled():
                clean, predicted = checkpoint(_denoise, *arguments, use_reentrant=False)
            else:
                clean, predicted = _denoise(*arguments)
            here, there = levels[index], levels[index + 1]
            fresh = eta * _posterior_std(here, there)
            latents = there.alpha * clean + math.sqrt(max(there.sigma**2 - fresh**2, 0.0)) * predicted
            if fresh:
                drawn = torch.randn(latents.shape, generator=generator)
                latents = latents + fresh * drawn.to(latents.device)
    return latents


def _denoise(
    denoiser: Denoiser, latents: Tensor, timestep: float, conditioning: Conditioning, guidance: float
) -> Prediction:
    return denoiser.denoise(latents, timestep, conditioning, guidance)


def _posterior_std(here: Level, there: Level) -> float:
    """Standard deviation of x_there given x_here and x_0 (arXiv 2010.02502, equation 16 with eta = 1)."""
    removed = here.sigma**2 - (here.alpha / there.alpha * there.sigma) ** 2
    return there.sigma / here.sigma * math.sqrt(max(removed, 0.0))

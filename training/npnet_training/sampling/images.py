"""Images by the pipeline's own call, in batches, from given noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from npnet_training.errors import ModelError, SettingsError
from npnet_training.sampling.conditioning import Conditioning
from npnet_training.sampling.denoiser import Denoiser
from npnet_training.sampling.families import family_of
from npnet_training.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
GOLDEN_RATIO = 0x9E3779B97F4A7C15  # far from every seed in use, odd


class SampleSettings(Settings):
    """How images are made."""

    steps: int = Field(default=10, ge=1)
    """Denoising steps."""
    guidance: float = Field(default=5.5, ge=0, allow_inf_nan=False)
    """Classifier-free guidance; up to 1 there is none."""
    scheduler: Literal["ddim", "dpm++", "euler"] | None = None
    """None for the model's own."""


@torch.no_grad()
def sample_images(
    pipe: Any,
    prompts: Conditioning | Sequence[str],
    noise: Tensor,
    settings: SampleSettings,
    *,
    seeds: Sequence[int] | None = None,
) -> list[Image.Image]:
    """An image for each noise.

    Args:
        pipe: see `Denoiser`.
        prompts: B of them, or encoded.
        noise: (B, C, H, W), standard normal; the pipeline scales it as its scheduler wants it.
        settings: see there.
        seeds: of the noise that ancestral schedulers add in every step, one for each image, so that an image
            does not depend on its batch, and images from the same seed differ by `noise` only. None: all 0.

    Returns:
        B images of PIL, RGB.

    Raises:
        SettingsError: numbers of prompts, seeds and noises that differ, or a Conditioning without the
            negative prompt.
        ModelError: an unknown class of pipeline, or its call failed.
    """
    family = family_of(pipe)
    guided = settings.guidance > 1
    conditioning = (
        prompts if isinstance(prompts, Conditioning) else Denoiser(pipe).encode(prompts, unconditional=guided)
    )
    seeds = [0] * len(noise) if seeds is None else seeds
    if not len(conditioning) == len(noise) == len(seeds):
        raise SettingsError(
            f"expected as many prompts and seeds as noises, given {len(conditioning)} and {len(seeds)} for "
            f"{len(noise)}"
        )
    height, width = family.size(noise.shape)
    device = pipe._execution_device
    with _scheduler(pipe, settings.scheduler):
        try:
            return pipe(
                **conditioning.to(device).arguments(guided),
                **family.arguments(),
                latents=noise.to(device, family.network.dtype),
                # not the seed itself, which gave the noise the image begins from
                generator=[
                    torch.Generator("cpu").manual_seed((seed + GOLDEN_RATIO) % 2**63) for seed in seeds
                ],
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                height=height,
                width=width,
            ).images
        except (TypeError, ValueError) as error:
            raise ModelError(f"{type(pipe).__name__} refused the call: {error}") from error


@contextmanager
def _scheduler(pipe: Any, name: str | None) -> Iterator[None]:
    if name is None:
        yield
        return
    import diffusers

    own = pipe.scheduler
    # Latents are not bounded; DDIM would clip them by its own default.
    pipe.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(own.config, clip_sample=False)
    try:
        yield
    finally:
        pipe.scheduler = own

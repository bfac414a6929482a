"""Images by the pipeline's own call, in batches, from given noise."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from npnet_runtime.integrations.diffusers.recording import last_steps
from npnet_training.errors import SettingsError
from npnet_training.sampling.conditioning import Conditioning
from npnet_training.sampling.denoiser import Denoiser
from npnet_training.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
GOLDEN_RATIO = 0x9E3779B97F4A7C15  # far from every seed in use, odd
PAPERS_GUIDANCE = 5.5


class SampleSettings(Settings):
    """How images are made."""

    steps: int = Field(default=10, ge=1)
    """Denoising steps."""
    guidance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """As the pipeline takes it; up to 1 there is none where two predictions are mixed. By default 5.5 where
    they are mixed by guidance_scale, and the pipeline's own elsewhere."""
    scheduler: Literal["ddim", "dpm++", "euler"] | None = None
    """None for the model's own; of flows dpm++ or euler."""

    def guidance_of(self, denoiser: Denoiser) -> float | None:
        """What is given to a pipeline: None for its own default."""
        if self.guidance is None and denoiser.guidance.argument == "guidance_scale":
            return PAPERS_GUIDANCE if denoiser.guidance.kind == "mixed" else None
        return self.guidance


@torch.no_grad()
def sample_images(
    denoiser: Denoiser,
    prompts: Conditioning | Sequence[str],
    noise: Tensor,
    settings: SampleSettings,
    *,
    seeds: Sequence[int] | None = None,
) -> list[Image.Image]:
    """An image for each noise.

    Args:
        denoiser: of the pipeline.
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
        ModelError: the pipeline's call failed.
    """
    seeds = [0] * len(noise) if seeds is None else seeds
    if not len(prompts) == len(noise) == len(seeds):
        raise SettingsError(
            f"expected as many prompts and seeds as noises, given {len(prompts)} and {len(seeds)} for "
            f"{len(noise)}"
        )
    conditioning = prompts if isinstance(prompts, Conditioning) else denoiser.encode(prompts)
    guidance = settings.guidance_of(denoiser)
    images: list[Image.Image] = denoiser.steered.images(
        noise,
        scheduler_of(denoiser.pipe, settings.scheduler),
        **denoiser.call_arguments(conditioning, guidance, tuple(noise.shape)),
        generator=_step_noise(seeds),
        **denoiser.of_steps(settings.steps),
    )
    return images


def render(
    denoiser: Denoiser,
    noise: Tensor,
    conditioning: Conditioning,
    steps: int,
    guidance: float | None,
    *,
    seeds: Sequence[int] | None = None,
    output: Literal["images", "latents"] = "images",
    gradient_steps: int | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Images or latents of the pipeline's own call, differentiable in the noise and the embeddings.

    Args:
        denoiser: of the pipeline.
        noise: (B, C, H, W), standard normal.
        conditioning: of B prompts.
        steps: of the pipeline's own schedule.
        guidance: as the pipeline takes it; None for its default.
        seeds: see `sample_images`.
        output: images (B, 3, height, width) in [0, 1], or clean latents as the pipeline keeps them, packed.
        gradient_steps: let gradients through the last so many steps only (truncated back-propagation,
            arXiv 2309.17400): the state they begin from is then taken as the noise plus a constant, so that
            the noise still has a gradient. None for all.
        checkpointing: the networks' own, by which the backward pass computes their blocks again.

    Returns:
        float32.

    Raises:
        SettingsError: gradient_steps out of range, guidance without the negative prompt.
        ModelError: the pipeline's call failed.
    """
    if gradient_steps is not None and not 1 <= gradient_steps <= steps:
        raise SettingsError(f"gradient_steps: expected 1 to {steps} (the steps), given {gradient_steps}")
    scheduler = scheduler_of(denoiser.pipe, None)
    if gradient_steps is not None and gradient_steps < steps:
        scheduler = last_steps(scheduler, steps - gradient_steps)
    decodes = output == "images" and not denoiser.upcasts
    parts = [denoiser.network, denoiser.pipe.vae] if checkpointing and torch.is_grad_enabled() else []
    with _checkpointing(parts):
        found: Tensor = denoiser.steered.images(
            noise,
            scheduler,
            **denoiser.call_arguments(conditioning, guidance, tuple(noise.shape)),
            generator=_step_noise([0] * len(noise) if seeds is None else seeds),
            **denoiser.of_steps(steps),
            output_type="pt" if decodes else "latent",
        )
    if output == "images" and not decodes:
        return denoiser.decode(found) / 2 + 0.5
    return found.float()


def _step_noise(seeds: Sequence[int]) -> list[torch.Generator]:
    # not the seed itself, which gave the noise the image begins from
    return [torch.Generator("cpu").manual_seed((seed + GOLDEN_RATIO) % 2**63) for seed in seeds]


def scheduler_of(pipe: Any, name: str | None) -> Any:
    """A scheduler for one call: the pipeline's, or another with its settings.

    Raises:
        SettingsError: one that does not sample flows, for a flow.
    """
    if name is None:
        return copy.copy(pipe.scheduler)
    import diffusers

    if isinstance(pipe.scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        if name == "euler":
            return copy.copy(pipe.scheduler)
        if name != "dpm++":
            raise SettingsError(f"scheduler: expected dpm++ or euler for a flow, given {name}")
        own: Any = pipe.scheduler
        if own.config.use_dynamic_shifting and own.config.time_shift_type != "exponential":
            raise SettingsError("scheduler: expected euler for a flow whose shift is linear, given dpm++")
        return diffusers.DPMSolverMultistepScheduler.from_config(
            own.config, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=own.config.shift
        )
    # Latents are not bounded; DDIM would clip them by its own default.
    return getattr(diffusers, SCHEDULERS[name]).from_config(pipe.scheduler.config, clip_sample=False)


@contextlib.contextmanager
def _checkpointing(parts: Sequence[Any]) -> Iterator[None]:
    able = [part for part in parts if getattr(part, "_supports_gradient_checkpointing", False)]
    able = [part for part in able if not part.is_gradient_checkpointing]
    for part in able:
        part.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for part in able:
            part.disable_gradient_checkpointing()

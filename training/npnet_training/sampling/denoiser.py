"""A diffusers pipeline as one function of latents, timestep and prompt: its own call does the work."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.integrations.diffusers.checks import denoiser
from npnet_runtime.integrations.diffusers.steering import FEW
from npnet_training.errors import ModelError, SettingsError
from npnet_training.sampling.conditioning import Conditioning
from npnet_training.sampling.encoding import PromptEncoder
from npnet_training.sampling.schedule import NoiseSchedule, Prediction, Solver


class Denoiser(PromptEncoder):
    """Predictions of any text-to-image pipeline that golden noise can be attached to, in one parametrisation.

    Latents are x_t = alpha_t x_0 + sigma_t eps with unit variance at the noisy end, whatever the pipeline's
    scheduler scales them by, in the layout in which the pipeline draws its noise, whatever it packs them to.
    Predictions are those of the pipeline's own call, guided as it guides.

    Args:
        pipe: a text-to-image pipeline of diffusers; not changed.
        size: of images in pixels, (height, width); None for the pipeline's own.
        options: of the pipeline's call, where its defaults are not wanted, such as `max_sequence_length`.

    Raises:
        ModelError: it is no such pipeline, or one for inpainting or editing.
    """

    def __init__(
        self, pipe: Any, size: tuple[int, int] | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(pipe, size, options)
        config = getattr(getattr(pipe, "unet", None), "config", None)
        if config is not None and config.in_channels != pipe.vae.config.latent_channels:
            raise ModelError(
                f"model: expected a denoiser of the decoder's {pipe.vae.config.latent_channels} channels, "
                f"given one of {config.in_channels}; inpainting and editing models cannot be used"
            )

    @property
    def network(self) -> Any:
        """The network that removes the noise."""
        return denoiser(self.pipe)

    @functools.cached_property
    def schedule(self) -> NoiseSchedule:
        """Noise levels of the pipeline's scheduler.

        Raises:
            ModelError: they, or what its network predicts, are unknown.
        """
        return NoiseSchedule(self.pipe.scheduler)

    def predict(
        self, latents: Tensor, timestep: float | Tensor, conditioning: Conditioning, guidance_scale: float
    ) -> Tensor:
        """The noise in latents, guided.

        Args:
            latents: (B, C, H, W), any float dtype.
            timestep: as `timesteps` gives it.
            conditioning: of B prompts.
            guidance_scale: as the pipeline takes it; 1.0 runs the conditional half only where predictions are
                mixed.

        Returns:
            (B, C, H, W), float32. Differentiable in the latents and the embeddings.

        Raises:
            SettingsError: mixed guidance below 1 or without the negative prompt, another number of prompts.
            ModelError: the pipeline refused the call, or its noise levels are unknown.
        """
        return self.denoise(latents, timestep, conditioning, guidance_scale).noise

    def denoise(
        self, latents: Tensor, timestep: float | Tensor, conditioning: Conditioning, guidance_scale: float
    ) -> Prediction:
        """Clean latents and noise; see `predict`.

        Of v and flow predictions both are finite where alpha is 0, and the clean latents cannot be
        computed from the noise.
        """
        if len(conditioning) != len(latents):
            raise SettingsError(
                f"conditioning: expected {len(latents)} prompts, one for each latent, "
                f"given {len(conditioning)}"
            )
        name = type(self.pipe).__name__
        if self.guidance.kind == "mixed" and guidance_scale < 1:
            raise SettingsError(f"guidance: expected 1, which is none, or more, given {guidance_scale}")
        if self.guidance.kind == "none" and guidance_scale != 1:
            raise SettingsError(f"guidance: expected 1, for {name} is not guided, given {guidance_scale}")
        schedule = self.schedule
        step = torch.as_tensor(timestep, device=self.device)
        latents = latents.to(self.device, torch.float32)
        arguments = self.call_arguments(conditioning, guidance_scale, tuple(latents.shape))
        output = self.steered.output(latents, step, **arguments, **FEW)
        return schedule.split(latents, float(step), output.float())

    def call_arguments(
        self, conditioning: Conditioning, guidance_scale: float | None, shape: Sequence[int]
    ) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call, for noise of a shape (B, C, H, W).

        Raises:
            SettingsError: mixed guidance without the negative prompt.
        """
        if guidance_scale is None:
            guided, scale = self.guidance.kind == "mixed" and self.guidance.by_default, {}
        else:
            guided, scale = self.guidance.mixes(guidance_scale), self.guidance.arguments(guidance_scale)
        _, drawn = self._negative("")
        height, width = (
            pixels * side // own
            for pixels, side, own in zip(drawn.pixels, shape[-2:], drawn.shape[-2:], strict=True)
        )
        given: dict[str, Any] = {**conditioning.to(self.device).arguments(guided), **scale}
        if guided and "negative_prompt" in self.steered.parameters:
            given["negative_prompt"] = None  # some have the empty one as a default, beside its embeddings
        return {**given, "height": height, "width": width}

    def of_steps(self, steps: int) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call for a number of steps."""
        given: dict[str, Any] = {"num_inference_steps": steps}
        if "intermediate_timesteps" in self.steered.parameters and steps != 2:
            given["intermediate_timesteps"] = None  # the default is for two steps only
        return given

    def alphas(self, timestep: float | Tensor) -> tuple[float, float]:
        """alpha_t and sigma_t."""
        return self.schedule.level(float(timestep))

    def timesteps(self, steps: int, solver: Solver = "ddim", shape: Sequence[int] | None = None) -> Tensor:
        """(steps,) timesteps from the noisiest, as the solver spaces them for this model.

        Of a flow they are those that the pipeline sets for such a call, whatever the solver.

        Args:
            steps: of sampling.
            solver: which spacing.
            shape: of the noise, (..., C, H, W); None for the denoiser's own.

        Raises:
            SettingsError: more steps than the model was trained with.
        """
        if not self.schedule.set_by_pipeline:
            return self.schedule.timesteps(steps, solver)
        self.schedule.check_steps(steps)
        noise = torch.zeros(1, *(self.latent_shape if shape is None else shape[-3:]))
        arguments = self.call_arguments(self.empty, 1.0, noise.shape)
        with torch.no_grad():
            found = self.steered.timesteps(noise, **arguments, **self.of_steps(steps))
        return found.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Images of clean latents: (B, C, H, W) to (B, 3, height, width), float32 in [-1, 1].

        For autoencoders of the first kind, `AutoencoderKL`. Differentiable; float32 where the decoder
        overflows in half precision. Values beyond [-1, 1] are clipped.
        """
        vae = self._vae
        config = vae.config
        latents = latents.to(self.device, vae.dtype)
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            shape = (1, -1, 1, 1)
            latents = latents * latents.new_tensor(std).view(shape) / config.scaling_factor
            latents = latents + latents.new_tensor(mean).view(shape)
        else:
            latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        return vae.decode(latents, return_dict=False)[0].float().clamp(-1, 1)

    @property
    def upcasts(self) -> bool:
        """Whether the pipeline casts its decoder back and forth, which no gradient survives."""
        vae = self.pipe.vae
        return vae.dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))

    @functools.cached_property
    def _vae(self) -> Any:
        return copy.deepcopy(self.pipe.vae).float() if self.upcasts else self.pipe.vae

"""A diffusers pipeline's own denoiser and noise schedule as one function of latents, timestep and prompt."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npnet_training.errors import ModelError, SettingsError
from npnet_training.sampling.conditioning import Conditioning
from npnet_training.sampling.families import family_of
from npnet_training.sampling.schedule import NoiseSchedule, Solver


class Prediction(NamedTuple):
    """What the denoiser says of latents x_t = alpha_t x_0 + sigma_t eps; float32, (B, C, H, W) both."""

    clean: Tensor
    noise: Tensor


class Denoiser:
    """Predictions of any supported pipeline, in one parametrisation.

    Latents are x_t = alpha_t x_0 + sigma_t eps with unit variance at the noisy end, whatever the pipeline's
    scheduler scales them by.

    Args:
        pipe: a StableDiffusionXLPipeline, StableDiffusionPipeline or HunyuanDiTPipeline; not changed.

    Raises:
        ModelError: the class of the pipeline or of its scheduler, or what it predicts, is unknown.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.family = family_of(pipe)
        self.schedule = NoiseSchedule(pipe.scheduler)
        config = self.family.network.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape: tuple[int, int, int] = (config.in_channels, height, width)
        if config.in_channels != pipe.vae.config.latent_channels:
            raise ModelError(
                f"model: expected a denoiser of the decoder's {pipe.vae.config.latent_channels} channels, "
                f"given one of {config.in_channels}; inpainting and editing models cannot be used"
            )
        self._negatives: dict[str, dict[str, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs."""
        return self.pipe._execution_device

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser's weights."""
        return self.family.network.dtype

    @property
    def prediction_type(self) -> str:
        """`epsilon`, `v_prediction` or `flow_prediction`."""
        return self.schedule.prediction_type

    @functools.cached_property
    def text_shape(self) -> tuple[int, int]:
        """Tokens and width of `Conditioning.prompt_embeds`."""
        tokens, width = self._negative("")["prompt_embeds"].shape[1:]
        return tokens, width

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], negative: str = "", *, unconditional: bool = True
    ) -> Conditioning:
        """Encode prompts by the pipeline's text encoders, in one batch.

        Args:
            prompts: B of them.
            negative: of all of them; "" is what the pipeline takes when it is given none.
            unconditional: with the negative prompt, which guidance needs; it is encoded once.
        """
        encoded = self.family.encode(prompts)
        embeds = encoded.pop("prompt_embeds")
        if not unconditional:
            return Conditioning(embeds, encoded)
        rows = len(prompts)
        shared = self._negative(negative)
        return Conditioning(
            embeds, encoded, {name: value.expand(rows, *value.shape[1:]) for name, value in shared.items()}
        )

    def predict(
        self, latents: Tensor, timestep: float | Tensor, conditioning: Conditioning, guidance_scale: float
    ) -> Tensor:
        """The noise in latents, with classifier-free guidance.

        Args:
            latents: (B, C, H, W), any float dtype.
            timestep: as `timesteps` gives it.
            conditioning: of B prompts.
            guidance_scale: 1.0 runs the conditional half only.

        Returns:
            (B, C, H, W), float32. Differentiable in the latents and the embeddings.

        Raises:
            SettingsError: guidance without the negative prompt, or another number of prompts.
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
        given = latents.to(self.device, self.dtype)
        step = torch.as_tensor(timestep, device=self.device)
        if guidance_scale == 1.0:
            output = self.family.forward(given, step, conditioning.positive).float()
        else:
            raw = self.family.forward(torch.cat([given, given]), step, conditioning.guided()).float()
            free, bound = raw.chunk(2)
            output = free + guidance_scale * (bound - free)
        return self._split(latents.to(self.device, torch.float32), float(step), output)

    def alphas(self, timestep: float | Tensor) -> tuple[float, float]:
        """alpha_t and sigma_t."""
        return self.schedule.level(float(timestep))

    def timesteps(self, steps: int, solver: Solver = "ddim") -> Tensor:
        """(steps,) timesteps from the noisiest, as the solver spaces them for this model.

        Raises:
            SettingsError: more steps than the model was trained with.
        """
        return self.schedule.timesteps(steps, solver)

    def decode(self, latents: Tensor) -> Tensor:
        """Images of clean latents: (B, C, H, W) to (B, 3, height, width), float32 in [-1, 1].

        Differentiable; float32 where the decoder overflows in half precision. Values beyond [-1, 1] are
        clipped.
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
            latents = latents / config.scaling_factor
        return vae.decode(latents, return_dict=False)[0].float().clamp(-1, 1)

    @functools.cached_property
    def _vae(self) -> Any:
        vae = self.pipe.vae
        if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
            return copy.deepcopy(vae).float()  # a copy: the pipeline casts its own back and forth
        return vae

    def _negative(self, prompt: str) -> dict[str, Tensor]:
        if prompt not in self._negatives:
            with torch.no_grad():
                self._negatives[prompt] = self.family.encode_negative(prompt)
        return self._negatives[prompt]

    def _split(self, latents: Tensor, timestep: float, output: Tensor) -> Prediction:
        alpha, sigma = self.schedule.level(timestep)
        if self.prediction_type == "epsilon":
            return Prediction((latents - sigma * output) / alpha, output)
        if self.prediction_type == "v_prediction":
            return Prediction(alpha * latents - sigma * output, alpha * output + sigma * latents)
        # d x_t / d sigma, with alpha = 1 - sigma
        return Prediction(latents - sigma * output, latents + alpha * output)

"""The dataset's own text-to-image model, frozen, as a function of noise that gradients run through."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from npnet_training.attention import attention_of_few
from npnet_training.sampling import Conditioning, Denoiser, render
from npnet_training.training.loss_settings import SamplerSettings
from npnet_training.training.source import SourceInfo
from npnet_training.training.source_model import require_same, source_denoiser

CACHE_BYTES = 256 << 20


class FrozenGenerator:
    """Latents and images of noise and prompts.

    Args:
        denoiser: of a pipeline, whose weights are frozen in place.
        settings: of the sampler.
    """

    def __init__(self, denoiser: Denoiser, settings: SamplerSettings) -> None:
        self.denoiser = denoiser
        self.settings = settings
        self._encoded: OrderedDict[str, Conditioning] = OrderedDict()
        self._held = 0
        for component in denoiser.pipe.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()

    @classmethod
    def load(
        cls, info: SourceInfo, settings: SamplerSettings, device: torch.device, *, offline: bool = False
    ) -> Self:
        """The generator of a dataset's model.

        Raises:
            ModelError: it cannot be loaded.
            DatasetError: it is not the model that the pairs were collected with.
        """
        dtype: torch.dtype = getattr(torch, settings.dtype)
        denoiser = source_denoiser(info, device, dtype, offline=offline)
        require_same(info, "latent channels", info.latent_shape[0], denoiser.latent_shape[0])
        return cls(denoiser, settings)

    def render(
        self,
        noise: Tensor,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        output: Literal["images", "latents"] = "images",
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """What the pipeline makes of noise; see `npnet_training.sampling.render`.

        Args:
            noise: (B, C, H, W).
            prompts: B of them.
            seeds: B of them, of the noise that ancestral schedulers add in every step.
            output: images (B, 3, height, width) in [0, 1], or clean latents.
            steps: None for the settings', and all of them pass a gradient if others are given.
            guidance: None for the settings'.

        Returns:
            float32.

        Raises:
            ModelError: the pipeline's call failed.
        """
        settings = self.settings
        conditioning = self.encode(prompts)
        with attention_of_few(noise[0, 0].numel(), noise.device, recomputed=settings.checkpointing):
            return render(
                self.denoiser, noise, conditioning, steps or settings.steps,
                settings.guidance if guidance is None else guidance, output=output, seeds=seeds,
                checkpointing=settings.checkpointing,
                gradient_steps=settings.gradient_steps if steps is None else None,
            )  # fmt: skip

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encoded prompts with the empty negative one, kept while they fit into memory."""
        found = []
        for prompt in prompts:
            if prompt not in self._encoded:
                # Alone, so that its bits depend neither on its batch nor on where a run was resumed.
                self._encoded[prompt] = self.denoiser.encode([prompt])
                self._held += self._encoded[prompt].nbytes
            self._encoded.move_to_end(prompt)
            found.append(self._encoded[prompt])
        while self._held > CACHE_BYTES and len(self._encoded) > 1:
            self._held -= self._encoded.popitem(last=False)[1].nbytes
        return Conditioning.cat(found)

"""The NOISE that a ComfyUI sampler asks for its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.errors import InputError
from npnet_runtime.golden import GoldenNoise


@dataclass(frozen=True, eq=False)
class ComfyGoldenNoise:
    """Golden noise in ComfyUI's protocol: a `seed`, and `generate_noise(latent)` for a CPU tensor.

    Nothing in it changes, so ComfyUI may keep it and use it again with other latents.

    Args:
        noise: the NOISE that it makes golden; it alone reads the latent's `batch_index`.
        prompt_embeds: (P, tokens, width), of the positive prompts.
        golden: the engine.
    """

    noise: Any
    prompt_embeds: Tensor
    golden: GoldenNoise

    @property
    def seed(self) -> int:
        """Of the noise it was made from; samplers that add noise later draw it from this seed."""
        return self.noise.seed

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Golden noise for a LATENT.

        Args:
            input_latent: `samples`, (B, C, H, W), and perhaps `batch_index`: which of the seed's noises.

        Returns:
            (B, C, H, W) on the CPU, in the dtype of the plain noise. Prompts are dealt out as ComfyUI's
            samplers do: one for all, or prompt i for sample i, from the first again when they run out.

        Raises:
            InputError: no noise, or noise or prompts that the engine cannot take.
        """
        noise = self.noise.generate_noise(input_latent)
        if not isinstance(noise, Tensor):
            raise InputError(f"noise: expected a tensor from {_name(self.noise)}, given {_name(noise)}")
        if noise.layout == torch.strided and not noise.is_nested and not noise.any():
            raise InputError(
                f"noise: expected random noise, given zeros from {_name(self.noise)}; "
                "connect a RandomNoise node"
            )
        prompts = self.prompt_embeds
        if len(prompts) > 1:
            prompts = prompts.repeat(math.ceil(len(noise) / len(prompts)), 1, 1)[: len(noise)]
        device = self.golden.device
        return self.golden(noise.to(device), prompts.to(device)).cpu()


def positive_prompt(conditioning: Any) -> Tensor:
    """The embeddings of a CONDITIONING that holds one prompt, or one batch of prompts.

    Args:
        conditioning: a list of [embeddings (P, tokens, width), options].

    Raises:
        InputError: it is no such list, or holds several: golden noise is made for one prompt.
    """
    if not isinstance(conditioning, list) or not conditioning:
        raise InputError(f"conditioning: expected a CONDITIONING, given {_name(conditioning)}")
    if len(conditioning) > 1:
        raise InputError(
            f"conditioning: expected one prompt, given {len(conditioning)} combined or scheduled ones; "
            "connect the CONDITIONING of the main prompt, before it is combined with others"
        )
    entry = conditioning[0]
    if not isinstance(entry, (list, tuple)) or not entry:
        raise InputError(f"conditioning: expected entries of embeddings and options, given {_name(entry)}")
    embeds = entry[0]
    if not isinstance(embeds, Tensor) or embeds.ndim != 3:
        shape = f" of shape {tuple(embeds.shape)}" if isinstance(embeds, Tensor) else ""
        raise InputError(f"conditioning: expected embeddings of a text, given {_name(embeds)}{shape}")
    return embeds.detach()


def _name(thing: object) -> str:
    return type(thing).__name__

"""The NOISE that a ComfyUI sampler asks for its noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.errors import InputError
from npnet_runtime.golden import GoldenNoise
from npnet_runtime.inputs.resolution import ResolutionPolicy
from npnet_runtime.inputs.texts import Prompt, as_prompt
from npnet_runtime.integrations.comfyui.checks import check_channels, check_size
from npnet_runtime.integrations.comfyui.host import say


@dataclass(frozen=True, eq=False)
class ComfyGoldenNoise:
    """Golden noise in ComfyUI's protocol: a `seed`, and `generate_noise(latent)` for a CPU tensor.

    Nothing in it changes, so ComfyUI may keep it and use it again with other latents.

    Args:
        noise: the NOISE that it makes golden; it alone reads the latent's `batch_index`.
        prompt: P positive prompts, or their embeddings (P, tokens, width).
        golden: the engine, with the policies of the node.
        other_sizes: the policy, for messages; None where they are the engine's own.
    """

    noise: Any
    prompt: Prompt | Tensor
    golden: GoldenNoise
    other_sizes: ResolutionPolicy | None = None

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
        return self.make_golden(self.noise.generate_noise(input_latent))

    def make_golden(self, noise: Any) -> Tensor:
        """Golden noise of plain noise; see `generate_noise`."""
        if not isinstance(noise, Tensor):
            raise InputError(f"noise: expected a tensor from {_name(self.noise)}, given {_name(noise)}")
        if noise.layout == torch.strided and not noise.is_nested:
            if not noise.any() and noise.numel():
                raise InputError(
                    f"noise: expected random noise, given zeros from {_name(self.noise)}; "
                    "connect a RandomNoise node"
                )
            if self.other_sizes is not None:
                taken = check_size(tuple(noise.shape), self.golden.bundle.manifest, self.other_sizes)
                check_channels(tuple(noise.shape), self.golden.bundle.manifest)
                if taken:
                    say(taken)
        device = self.golden.device
        return self.golden(noise.to(device), as_prompt(self.prompt).dealt_out(len(noise)).to(device)).cpu()


@dataclass(frozen=True, eq=False)
class PlainAndGolden:
    """Two noises of each seed, for a batch that is twice as long: first all plain, then all golden.

    Args:
        golden: makes the second half from the first.
    """

    golden: ComfyGoldenNoise

    @property
    def seed(self) -> int:
        """See `ComfyGoldenNoise`."""
        return self.golden.seed

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """(2B, C, H, W) for the LATENT that `doubled` made.

        Raises:
            InputError: it is none, or see `ComfyGoldenNoise`.
        """
        count = len(input_latent["samples"])
        if count % 2:
            raise InputError(
                f"latent_image: expected pairs, as the node Plain and Golden Noise makes them, given a batch "
                f"of {count}; connect its latent to the sampler"
            )
        plain = self.golden.noise.generate_noise(first_half(input_latent))
        return torch.cat([plain, self.golden.make_golden(plain)])


def doubled(latent: dict[str, Any]) -> dict[str, Any]:
    """A LATENT of the same samples twice in a row, with the same noises of their seed."""
    count = len(latent["samples"])
    return {
        key: [*value, *value]
        if key == "batch_index"
        else torch.cat([value, value])
        if isinstance(value, Tensor) and value.ndim and len(value) == count
        else value
        for key, value in latent.items()
    }


def first_half(latent: dict[str, Any]) -> dict[str, Any]:
    """The LATENT that `doubled` was given."""
    count = len(latent["samples"])
    return {
        key: value[: count // 2] if isinstance(value, (list, Tensor)) and len(value) == count else value
        for key, value in latent.items()
    }


def _name(thing: object) -> str:
    return type(thing).__name__

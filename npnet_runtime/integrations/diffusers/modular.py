"""A block for Modular Diffusers: golden noise as a step of its own, before the latents are prepared."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from npnet_runtime.integrations.diffusers.checks import check_device, denoiser
from npnet_runtime.integrations.diffusers.draw import Draw
from npnet_runtime.integrations.protocol import Golden


class GoldenNoiseStep(ModularPipelineBlocks):
    """Draws the noise as the step after it would, makes it golden, and passes it on as `latents`.

    Insert it before the step that prepares the latents, which scales them for the scheduler, and after the
    one that sets `batch_size`, whose `prompt_embeds` are the positive ones.

    Args:
        golden: the engine.
    """

    def __init__(self, golden: Golden) -> None:
        super().__init__()
        self._golden = golden

    @property
    def description(self) -> str:
        """Shown in the documentation of a pipeline."""
        return "Makes the initial noise golden for the positive prompt"

    @property
    def inputs(self) -> list[InputParam]:
        """What the step that prepares the latents reads as well, and the prompt."""
        return [
            InputParam("height"),
            InputParam("width"),
            InputParam("latents"),
            InputParam("num_images_per_prompt", default=1),
            InputParam("generator"),
            InputParam("batch_size", required=True, type_hint=int),
            InputParam("dtype", type_hint=torch.dtype),
            InputParam("prompt_embeds", required=True, type_hint=torch.Tensor),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The golden noise."""
        return [OutputParam("latents", type_hint=torch.Tensor, description="golden noise, of unit variance")]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the step.

        Raises:
            PipelineError: the pipeline runs on another device than the engine.
            InputError: noise or a prompt that the engine cannot take; no random number was drawn.
        """
        block: Any = self.get_block_state(state)
        device = self._golden.device
        check_device(components._execution_device, device)
        noise = block.latents
        if noise is None:
            scale = components.vae_scale_factor
            height = block.height or components.default_sample_size * scale
            width = block.width or components.default_sample_size * scale
            batch = block.batch_size * block.num_images_per_prompt
            shape = (batch, components.num_channels_latents, int(height) // scale, int(width) // scale)
            draw = Draw(shape, block.dtype or denoiser(components).dtype, device, block.generator)
            if draw.miscounted:
                return components, state  # a wrong number of generators: the next step says so
            self._golden.check_shapes(shape, block.prompt_embeds)
            noise = draw.take()
        block.latents = self._golden(noise.to(device), block.prompt_embeds)
        self.set_block_state(state, block)
        return components, state

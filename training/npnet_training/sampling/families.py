"""What differs between the pipelines of diffusers: how they encode prompts and call their denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from npnet_training.errors import ModelError


class StableDiffusion:
    """Stable Diffusion 1.x and 2.x, and pipelines made of its class: one text encoder, a U-Net."""

    denoiser = "unet"

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        if getattr(self.network.config, "time_cond_proj_dim", None) is not None:
            raise ModelError(
                "model: its U-Net reads the guidance scale (time_cond_proj_dim), so it has no unguided half; "
                "collect with the model it was distilled from"
            )

    @property
    def network(self) -> Any:
        """The denoiser."""
        return getattr(self.pipe, self.denoiser)

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The pipeline's arguments for prompts, (B, ...) each."""
        embeds, _ = self.pipe.encode_prompt(list(prompts), self.pipe._execution_device, 1, False)
        return {"prompt_embeds": embeds}

    def encode_negative(self, negative: str) -> dict[str, Tensor]:
        """The same for one negative prompt; "" is what the pipeline takes when it is given none."""
        return self.encode([negative])

    def forward(self, latents: Tensor, timestep: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The denoiser's output for (B, C, H, W) latents."""
        return self.network(
            latents, timestep, encoder_hidden_states=inputs["prompt_embeds"], return_dict=False
        )[0]

    def size(self, latent_shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of the image, in pixels."""
        factor = self.pipe.vae_scale_factor
        return latent_shape[-2] * factor, latent_shape[-1] * factor

    def arguments(self) -> dict[str, Any]:
        """Further arguments of the pipeline's call."""
        return {}


class StableDiffusionXL(StableDiffusion):
    """SDXL: two text encoders, pooled embeddings, the image's size as micro-conditioning."""

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """See the base."""
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.pipe._execution_device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def encode_negative(self, negative: str) -> dict[str, Tensor]:
        """See the base; SDXL's empty negative prompt is zeros."""
        encoded = self.encode([negative])
        if not negative and self.pipe.config.force_zeros_for_empty_prompt:
            return {name: torch.zeros_like(value) for name, value in encoded.items()}
        return encoded

    def forward(self, latents: Tensor, timestep: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """See the base."""
        pooled, embeds = inputs["pooled_prompt_embeds"], inputs["prompt_embeds"]
        size = self.size(latents.shape)
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=embeds.dtype, device=embeds.device)
        return self.network(
            latents,
            timestep,
            encoder_hidden_states=embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids.expand(len(latents), -1)},
            return_dict=False,
        )[0]


class HunyuanDiT(StableDiffusion):
    """Hunyuan-DiT: a bilingual CLIP and T5, a transformer that also gives the variance."""

    denoiser = "transformer"

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """See the base."""
        encoded: dict[str, Tensor] = {}
        for index, suffix in enumerate(("", "_2")):
            embeds, _, mask, _ = self.pipe.encode_prompt(
                list(prompts),
                device=self.pipe._execution_device,
                dtype=self.network.dtype,
                do_classifier_free_guidance=False,
                text_encoder_index=index,
            )
            encoded |= {f"prompt_embeds{suffix}": embeds, f"prompt_attention_mask{suffix}": mask}
        return encoded

    def forward(self, latents: Tensor, timestep: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """See the base."""
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

        batch, device = len(latents), latents.device
        patch = self.network.config.patch_size
        grid = (latents.shape[-2] // patch, latents.shape[-1] // patch)
        rotary = get_2d_rotary_pos_embed(
            self.network.inner_dim // self.network.num_heads,
            get_resize_crop_region_for_grid(grid, 512 // 8 // patch),
            grid,
            device=device,
            output_type="pt",
        )
        # original size, target size, corner of the crop: the pipeline's defaults
        sizes = torch.tensor([[1024, 1024, *self.size(latents.shape), 0, 0]], device=device)
        output = self.network(
            latents,
            timestep.to(latents.dtype).expand(batch),
            encoder_hidden_states=inputs["prompt_embeds"],
            text_embedding_mask=inputs["prompt_attention_mask"],
            encoder_hidden_states_t5=inputs["prompt_embeds_2"],
            text_embedding_mask_t5=inputs["prompt_attention_mask_2"],
            image_meta_size=sizes.to(latents.dtype).repeat(batch, 1),
            style=torch.zeros(batch, dtype=torch.int64, device=device),
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        return output.chunk(2, dim=1)[0]

    def size(self, latent_shape: Sequence[int]) -> tuple[int, int]:
        """See the base; the pipeline takes a latent to be 8 pixels wide."""
        return latent_shape[-2] * 8, latent_shape[-1] * 8

    def arguments(self) -> dict[str, Any]:
        """See the base; binning would change the size that the latents have."""
        return {"use_resolution_binning": False}


FAMILIES: dict[str, type[StableDiffusion]] = {
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusionPipeline": StableDiffusion,
    "HunyuanDiTPipeline": HunyuanDiT,
}


def family_of(pipe: Any) -> StableDiffusion:
    """How to talk to a pipeline, by its class or a base of it.

    Raises:
        ModelError: its class is unknown.
    """
    for base in type(pipe).__mro__:
        if base.__name__ in FAMILIES:
            return FAMILIES[base.__name__](pipe)
    raise ModelError(
        f"model: expected a pipeline of class {', '.join(FAMILIES)}, given {type(pipe).__name__}; "
        "others need an entry in npnet_training.sampling.families"
    )

"""Denoisers of three families called by hand, as their pipelines do: the plain reference of `Denoiser`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from torch import Tensor

Inputs = Mapping[str, Any]
Forward = Callable[[Any, Tensor, Tensor, Inputs], Tensor]


def stable_diffusion(pipe: Any, latents: Tensor, timestep: Tensor, inputs: Inputs) -> Tensor:
    """One text encoder, a U-Net."""
    return pipe.unet(latents, timestep, encoder_hidden_states=inputs["prompt_embeds"]).sample


def sdxl(pipe: Any, latents: Tensor, timestep: Tensor, inputs: Inputs) -> Tensor:
    """Pooled embeddings, and the image's size as micro-conditioning."""
    embeds, factor = inputs["prompt_embeds"], pipe.vae_scale_factor
    size = latents.shape[-2] * factor, latents.shape[-1] * factor
    time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=embeds.dtype)
    added = {"text_embeds": inputs["pooled_prompt_embeds"], "time_ids": time_ids.expand(len(latents), -1)}
    return pipe.unet(latents, timestep, encoder_hidden_states=embeds, added_cond_kwargs=added).sample


def hunyuan_dit(pipe: Any, latents: Tensor, timestep: Tensor, inputs: Inputs) -> Tensor:
    """A CLIP and T5, a transformer that also gives the variance; a latent is 8 pixels wide."""
    network, batch = pipe.transformer, len(latents)
    patch = network.config.patch_size
    grid = latents.shape[-2] // patch, latents.shape[-1] // patch
    region = get_resize_crop_region_for_grid(grid, 512 // 8 // patch)
    rotary = get_2d_rotary_pos_embed(network.inner_dim // network.num_heads, region, grid, output_type="pt")
    size = latents.shape[-2] * 8, latents.shape[-1] * 8
    output = network(
        latents,
        timestep.to(latents.dtype).expand(batch),
        encoder_hidden_states=inputs["prompt_embeds"],
        text_embedding_mask=inputs["prompt_attention_mask"],
        encoder_hidden_states_t5=inputs["prompt_embeds_2"],
        text_embedding_mask_t5=inputs["prompt_attention_mask_2"],
        image_meta_size=torch.tensor([[1024, 1024, *size, 0, 0]]).to(latents.dtype).repeat(batch, 1),
        style=torch.zeros(batch, dtype=torch.int64),
        image_rotary_emb=rotary,
        return_dict=False,
    )[0]
    return output.chunk(2, dim=1)[0]


FORWARD: dict[str, Forward] = {
    "stable-diffusion": stable_diffusion,
    "sdxl": sdxl,
    "hunyuan-dit": hunyuan_dit,
}


def output(
    name: str, pipe: Any, latents: Tensor, timestep: float | Tensor, conditioning: Any, guidance: float
) -> Tensor:
    """The guided output for (B, C, H, W) latents."""
    step = torch.as_tensor(timestep)
    positive = FORWARD[name](pipe, latents, step, conditioning.positive)
    if guidance == 1:
        return positive
    negative = {
        key.removeprefix("negative_"): value.contiguous() for key, value in conditioning.negative.items()
    }
    free = FORWARD[name](pipe, latents, step, negative)
    return free + guidance * (positive - free)

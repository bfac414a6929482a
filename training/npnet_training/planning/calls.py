"""What a denoiser is called with: tensors on the device `meta` for one image, by its class in diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npnet_training.errors import ModelError
from npnet_training.planning.parts import Parts

_DTYPE = torch.bfloat16


def denoiser_call(parts: Parts) -> Callable[[], Any]:
    """A call of the denoiser for one image, with a gradient in its noise.

    Raises:
        ModelError: its class is not known here.
    """
    kind = type(parts.denoiser).__name__
    if kind not in _ARGUMENTS:
        raise ModelError(
            f"{parts.name}: there is no estimate for {kind}, only for {', '.join(_ARGUMENTS)}; measure it "
            "with --dry-run without --gpu"
        )
    arguments = _ARGUMENTS[kind](parts)
    return lambda: parts.denoiser(**arguments, return_dict=False)


def decoder_call(parts: Parts) -> Callable[[], Any]:
    """A call of the decoder for one image, with a gradient in its latents."""
    channels, height, width = parts.latent
    own: Any = parts.autoencoder
    if type(own).__name__ == "AutoencoderKLFlux2":  # its latents are packed by two
        channels, height, width = channels // 4, 2 * height, 2 * width
    latents = _noise(1, channels, height, width)
    return lambda: own.decode(latents, return_dict=False)


def _noise(*shape: int) -> Tensor:
    return _some(*shape).requires_grad_()


def _some(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=_DTYPE, device="meta")


def _unet(parts: Parts) -> dict[str, Any]:
    config: Any = parts.denoiser.config
    given: dict[str, Any] = {
        "sample": _noise(1, *parts.latent),
        "timestep": _some(1),
        "encoder_hidden_states": _some(1, parts.tokens, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        given["added_cond_kwargs"] = {"text_embeds": _some(1, pooled), "time_ids": _some(1, 6)}
    return given


def _flux(parts: Parts) -> dict[str, Any]:
    config: Any = parts.denoiser.config
    channels, height, width = parts.latent
    places = height * width // 4
    given: dict[str, Any] = {
        "hidden_states": _noise(1, places, 4 * channels),
        "encoder_hidden_states": _some(1, parts.tokens, config.joint_attention_dim),
        "pooled_projections": _some(1, config.pooled_projection_dim),
        "timestep": _some(1),
        "img_ids": _some(places, 3),
        "txt_ids": _some(parts.tokens, 3),
    }
    return given | ({"guidance": _some(1)} if config.guidance_embeds else {})


def _flux2(parts: Parts) -> dict[str, Any]:
    config: Any = parts.denoiser.config
    channels, height, width = parts.latent
    given: dict[str, Any] = {
        "hidden_states": _noise(1, height * width, channels),
        "encoder_hidden_states": _some(1, parts.tokens, config.joint_attention_dim),
        "timestep": _some(1),
        "img_ids": _some(height * width, 4),
        "txt_ids": _some(parts.tokens, 4),
    }
    return given | ({"guidance": _some(1)} if config.guidance_embeds else {})


def _z_image(parts: Parts) -> dict[str, Any]:
    config: Any = parts.denoiser.config
    channels, height, width = parts.latent
    return {
        "x": [_noise(channels, 1, height, width)],
        "t": _some(1),
        "cap_feats": [_some(parts.tokens, config.cap_feat_dim)],
    }


def _sana(parts: Parts) -> dict[str, Any]:
    config: Any = parts.denoiser.config
    given: dict[str, Any] = {
        "hidden_states": _noise(1, *parts.latent),
        "encoder_hidden_states": _some(1, parts.tokens, config.caption_channels),
        "timestep": _some(1),
    }
    return given | ({"guidance": _some(1)} if config.guidance_embeds else {})


def _sd3(parts: Parts) -> dict[str, Any]:
    config: Any = parts.denoiser.config
    return {
        "hidden_states": _noise(1, *parts.latent),
        "encoder_hidden_states": _some(1, parts.tokens, config.joint_attention_dim),
        "pooled_projections": _some(1, config.pooled_projection_dim),
        "timestep": _some(1),
    }


_ARGUMENTS: dict[str, Callable[[Parts], dict[str, Any]]] = {
    "UNet2DConditionModel": _unet,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux2,
    "ZImageTransformer2DModel": _z_image,
    "SanaTransformer2DModel": _sana,
    "SD3Transformer2DModel": _sd3,
}

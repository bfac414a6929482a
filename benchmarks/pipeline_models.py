"""SDXL with random weights, from tokenizer to autoencoder: no download, the timings of trained weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from npnet_runtime.networks.npnet_config import NPNetConfig, SwinConfig
from npnet_runtime.weights.models import MODELS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# As in the configuration files of stabilityai/stable-diffusion-xl-base-1.0; and a pipeline for any CPU.
FULL: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "text": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
    "text_2": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    },
    "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "scaling_factor": 0.13025},
}
_SMALL_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 16,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
    "text": _SMALL_TEXT | {"projection_dim": 16},
    "text_2": _SMALL_TEXT | {"projection_dim": 16},
    "vae": {"block_out_channels": (4,) * 4, "norm_num_groups": 4},
}
SIZES = {
    "full": (FULL, MODELS["sdxl"].config),
    "small": (
        SMALL,
        NPNetConfig(
            latent_height=16,
            latent_width=16,
            text_dim=32,
            spectral_hidden=8,
            spectral_mlp_hidden=24,
            swin=SwinConfig(28, 2, 7, 8, (2, 2), (2, 4), 2),
        ),
    ),
}


def random_sdxl(size: str, device: torch.device, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """A pipeline made in place: at full size, 7 GB in half precision.

    Args:
        size: one of `SIZES`.
        device: where it is made.
        dtype: of its weights.
    """
    parts = SIZES[size][0]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            torch.manual_seed(0)
            unet: Any = UNet2DConditionModel(**parts["unet"], addition_embed_type="text_time")
            text = CLIPTextModel(_text(parts["text"]))
            text_2 = CLIPTextModelWithProjection(_text(parts["text_2"]))
            blocks = len(parts["vae"]["block_out_channels"])
            vae: Any = AutoencoderKL(
                **parts["vae"],
                down_block_types=("DownEncoderBlock2D",) * blocks,
                up_block_types=("UpDecoderBlock2D",) * blocks,
                latent_channels=4,
            )
    finally:
        torch.set_default_dtype(before)
    pipe: Any = StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        text_encoder_2=text_2.eval(),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
        ),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)


def _text(sizes: dict[str, Any]) -> CLIPTextConfig:
    return CLIPTextConfig(**sizes, vocab_size=49408, bos_token_id=0, eos_token_id=1, pad_token_id=1)


def _tokenizer() -> CLIPTokenizer:
    pieces = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=77)

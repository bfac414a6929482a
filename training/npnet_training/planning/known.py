"""Models whose sizes are known without a connection: what their published configurations say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_CLIP_L, _CLIP_G, _T5_XXL, _QWEN3_4B, _GEMMA2_2B = (
    123_060_480, 694_659_840, 4_762_310_656, 4_022_468_096, 2_614_341_888,
)  # fmt: skip
_OPENCLIP_H = 340_387_840
_KL: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_EFFICIENT = ((), (), (), (5,), (5,), (5,))
_DC: dict[str, Any] = {
    "latent_channels": 32,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": _EFFICIENT,
    "decoder_qkv_multiscales": _EFFICIENT,
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
}
_SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_KLEIN: dict[str, Any] = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
_SPRINT: dict[str, Any] = {
    "num_layers": 28,
    "num_attention_heads": 36,
    "attention_head_dim": 32,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "guidance_embeds": True,
    "qk_norm": "rms_norm_across_heads",
    "timestep_scale": 1000.0,
}


@dataclass(frozen=True)
class Known:
    """A model; see `Parts`, and the names of classes in diffusers with their configurations."""

    repository: str
    denoiser: tuple[str, dict[str, Any]]
    autoencoder: tuple[str, dict[str, Any]]
    text_parameters: int
    channels: int
    tokens: int
    steps: int
    mixes: bool = False
    factor: int = 8
    size: tuple[int, int] = (1024, 1024)


_KL4, _KL16 = ("AutoencoderKL", _KL), ("AutoencoderKL", {**_KL, "latent_channels": 16})
_FLUX_TEXT = _CLIP_L + _T5_XXL
_SD21: dict[str, Any] = {
    "sample_size": 64,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
KNOWN = {
    "sdxl": Known(
        "stabilityai/stable-diffusion-xl-base-1.0", ("UNet2DConditionModel", _SDXL), _KL4, _CLIP_L + _CLIP_G,
        4, 77, 30, mixes=True,
    ),
    "sdxl-turbo": Known(
        "stabilityai/sdxl-turbo", ("UNet2DConditionModel", {**_SDXL, "sample_size": 64}), _KL4,
        _CLIP_L + _CLIP_G, 4, 77, 1, size=(512, 512),
    ),
    "sd-turbo": Known(
        "stabilityai/sd-turbo", ("UNet2DConditionModel", _SD21), _KL4, _OPENCLIP_H, 4, 77, 1, size=(512, 512)
    ),
    "flux.1-dev": Known(
        "black-forest-labs/FLUX.1-dev", ("FluxTransformer2DModel", {"guidance_embeds": True}), _KL16,
        _FLUX_TEXT, 16, 512, 28,
    ),
    "flux.1-schnell": Known(
        "black-forest-labs/FLUX.1-schnell", ("FluxTransformer2DModel", {}), _KL16, _FLUX_TEXT, 16, 256, 4
    ),
    "flux.2-klein": Known(
        "black-forest-labs/FLUX.2-klein-4B", ("Flux2Transformer2DModel", _KLEIN), ("AutoencoderKLFlux2", {}),
        _QWEN3_4B, 128, 512, 4, factor=16,
    ),
    "z-image": Known(
        "Tongyi-MAI/Z-Image", ("ZImageTransformer2DModel", {}), _KL16, _QWEN3_4B, 16, 128, 50, mixes=True
    ),
    "z-image-turbo": Known(
        "Tongyi-MAI/Z-Image-Turbo", ("ZImageTransformer2DModel", {}), _KL16, _QWEN3_4B, 16, 128, 8
    ),
    "sana-sprint": Known(
        "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers", ("SanaTransformer2DModel", _SPRINT),
        ("AutoencoderDC", _DC), _GEMMA2_2B, 32, 300, 2, factor=32,
    ),
}  # fmt: skip

"""Small pipelines of diffusers with random weights, whole from the tokenizer to the VAE.

Latents are 4 x 16 x 16, CLIP embeddings 77 x 32.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from npnet_runtime.networks.npnet_config import NPNetConfig
from support.networks import SMALL_SWIN

TEXT = NPNetConfig(
    latent_height=16, latent_width=16, text_tokens=77, text_dim=32, spectral_hidden=8, swin=SMALL_SWIN
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 32,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}
SCALED_LINEAR: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, knowing single letters only."""
    pieces = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip_text(width: int, *, projection: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A text encoder of CLIP with embeddings of the given width."""
    config = CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def vae(blocks: int = 2) -> AutoencoderKL:
    """An autoencoder that halves an image's sides `blocks - 1` times."""
    return AutoencoderKL(
        block_out_channels=(4,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16 * 2 ** (blocks - 1),
    ).eval()


def sdxl() -> StableDiffusionXLPipeline:
    """SDXL: two text encoders, Euler, whose `init_noise_sigma` is not 1."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        **UNET,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    pipe = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(16, projection=False),
        text_encoder_2=clip_text(16, projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(**SCALED_LINEAR),
        add_watermarker=False,
    )
    return _quiet(pipe)


def stable_diffusion() -> StableDiffusionPipeline:
    """Stable Diffusion 1.x: one text encoder, PNDM."""
    torch.manual_seed(1)
    pipe = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(32, projection=False),
        tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel(**UNET).eval(),
        scheduler=PNDMScheduler(**SCALED_LINEAR, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _quiet(pipe)


def hunyuan_dit() -> HunyuanDiTPipeline:
    """Hunyuan-DiT: a bilingual CLIP with a BERT body, and T5 of another width."""
    torch.manual_seed(2)
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    words |= {letter: 5 + index for index, letter in enumerate(LETTERS)}
    words |= {f"##{letter}": 31 + index for index, letter in enumerate(LETTERS)}
    body = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=77,
    )
    t5 = T5Config(vocab_size=len(words), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    pieces = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pipe = HunyuanDiTPipeline(
        vae=vae(blocks=4),  # the pipeline takes a latent to be 8 pixels wide
        text_encoder=BertModel(body).eval(),
        tokenizer=BertTokenizer(vocab=words, model_max_length=77),
        transformer=HunyuanDiT2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            cross_attention_dim=32,
            cross_attention_dim_t5=24,
            pooled_projection_dim=16,
            hidden_size=24,
        ).eval(),
        scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]"),
    )
    return _quiet(pipe)


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


PIPELINES = {"sdxl": sdxl, "stable-diffusion": stable_diffusion, "hunyuan-dit": hunyuan_dit}

"""Small pipelines of the transformer families, with random weights, whole from the tokenizer to the VAE.

Each draws its noise in a way of its own; what it draws for images of `SIZE` pixels is in `DRAWN`.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from support.pipelines import LETTERS, clip_text, clip_tokenizer

CHARACTERS = LETTERS + LETTERS.upper() + "0123456789 .,:;<>|_/-\n'\""
CHAT = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
VOCABULARY = 4 + len(CHARACTERS)
SIZE = 64


def tokenizer(longest: int = 512) -> PreTrainedTokenizerFast:
    """One that knows single characters, and how to lay out a chat."""
    pieces = {piece: index for index, piece in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *CHARACTERS])}
    model = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        model_max_length=longest,
        chat_template=CHAT,
        padding_side="right",
    )


def t5(width: int = 32) -> T5EncoderModel:
    """A text encoder of T5."""
    config = T5Config(vocab_size=VOCABULARY, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def gemma(width: int = 8) -> Gemma2Model:
    """A text encoder of Gemma 2."""
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        attn_implementation="eager",
    )
    return Gemma2Model(config).eval()


def qwen3(kind: type[Any], layers: int = 2) -> Any:
    """A text encoder of Qwen 3."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
    )
    return kind(config).eval()


def vae(channels: int, blocks: int = 4, **options: Any) -> AutoencoderKL:
    """An autoencoder that halves an image's sides `blocks - 1` times."""
    return AutoencoderKL(
        block_out_channels=(4,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=SIZE,
        **options,
    ).eval()


def pixart_sigma() -> PixArtSigmaPipeline:
    """PixArt-Sigma: T5 with a mask."""
    torch.manual_seed(3)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
    )
    return _quiet(PixArtSigmaPipeline(tokenizer(), t5(), vae(4), transformer.eval(), DDIMScheduler()))


def sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3: two CLIPs and T5 in one sequence, 16 channels, a pooled embedding."""
    torch.manual_seed(4)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        out_channels=16,
    )
    return _quiet(
        StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae(16, shift_factor=0.06),
            text_encoder=clip_text(16, projection=True),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip_text(16, projection=True),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=t5(),
            tokenizer_3=tokenizer(),
        )
    )


def flux(*, guidance: bool = True) -> FluxPipeline:
    """FLUX.1: packed latents, a shift by the size, guidance as an input (dev) or none (schnell)."""
    torch.manual_seed(5)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    return _quiet(
        FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=vae(16, shift_factor=0.1),
            text_encoder=clip_text(32, projection=False),
            tokenizer=clip_tokenizer(),
            text_encoder_2=t5(),
            tokenizer_2=tokenizer(),
            transformer=transformer.eval(),
        )
    )


def flux2_klein() -> Flux2KleinPipeline:
    """FLUX.2-klein: 4 x 32 channels at a sixteenth of the size, layers of an LLM stacked."""
    torch.manual_seed(6)
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    autoencoder = AutoencoderKLFlux2(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIZE,
    )
    return _quiet(
        Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=autoencoder.eval(),
            text_encoder=qwen3(Qwen3ForCausalLM),
            tokenizer=tokenizer(),
            transformer=transformer.eval(),
            is_distilled=False,
        )
    )


def qwen_image() -> QwenImagePipeline:
    """Qwen-Image: a frame axis, packed latents, prompts of their own length."""
    torch.manual_seed(7)
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return _quiet(
        QwenImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=autoencoder.eval(),
            text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
            tokenizer=tokenizer(2048),
            transformer=transformer.eval(),
        )
    )


def z_image() -> ZImagePipeline:
    """Z-Image: float32 noise, a list of embeddings, one length for each prompt."""
    torch.manual_seed(8)
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    return _quiet(
        ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(16, shift_factor=0.1),
            text_encoder=qwen3(Qwen3Model),
            tokenizer=tokenizer(),
            transformer=transformer.eval(),
        )
    )


def _sana(*, sprint: bool) -> dict[str, Any]:
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=32,
        out_channels=32,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=4,
        qk_norm="rms_norm_across_heads" if sprint else None,
        guidance_embeds=sprint,
    )
    blocks, shallow = ("ResBlock",) * 4, ((),) * 4
    autoencoder = AutoencoderDC(
        latent_channels=32,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8, 8, 32),
        decoder_block_out_channels=(8, 8, 8, 32),
        encoder_qkv_multiscales=shallow,
        decoder_qkv_multiscales=shallow,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )
    return {
        "tokenizer": tokenizer(),
        "text_encoder": gemma(),
        "vae": autoencoder.eval(),
        "transformer": transformer.eval(),
    }


def sana() -> SanaPipeline:
    """SANA: 32 channels, Gemma with a mask."""
    torch.manual_seed(9)
    return _quiet(SanaPipeline(**_sana(sprint=False), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)))


def sana_sprint() -> SanaSprintPipeline:
    """SANA-Sprint: the same, times `sigma_data`, few steps of the SCM scheduler."""
    torch.manual_seed(10)
    return _quiet(SanaSprintPipeline(**_sana(sprint=True), scheduler=SCMScheduler()))


def lumina2() -> Lumina2Pipeline:
    """Lumina-Image 2.0: Gemma with a mask, 16 channels."""
    torch.manual_seed(11)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(512, 64, 64),
        cap_feat_dim=8,
    )
    return _quiet(
        Lumina2Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae(16, shift_factor=0.1),
            text_encoder=gemma(),
            tokenizer=tokenizer(),
        )
    )


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


FLOWS: dict[str, Any] = {
    "pixart-sigma": pixart_sigma,
    "sd3": sd3,
    "flux-dev": flux,
    "flux-schnell": lambda: flux(guidance=False),
    "flux2-klein": flux2_klein,
    "qwen-image": qwen_image,
    "z-image": z_image,
    "sana": sana,
    "sana-sprint": sana_sprint,
    "lumina2": lumina2,
}
DRAWN: dict[str, tuple[int, ...]] = {
    "pixart-sigma": (4, 8, 8),
    "sd3": (16, 8, 8),
    "flux-dev": (16, 8, 8),
    "flux-schnell": (16, 8, 8),
    "flux2-klein": (16, 4, 4),
    "qwen-image": (16, 8, 8),
    "z-image": (16, 8, 8),
    "sana": (32, 8, 8),
    "sana-sprint": (32, 8, 8),
    "lumina2": (16, 8, 8),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "pixart-sigma": {"use_resolution_binning": False, "max_sequence_length": 24, "clean_caption": False},
    "sd3": {"max_sequence_length": 24},
    "flux-dev": {"max_sequence_length": 24},
    "flux-schnell": {"max_sequence_length": 24, "guidance_scale": 0.0},
    "flux2-klein": {"max_sequence_length": 48, "text_encoder_out_layers": (0, 1)},
    "qwen-image": {"max_sequence_length": 400, "negative_prompt": "", "true_cfg_scale": 2.0},
    "z-image": {"max_sequence_length": 64},
    "sana": {"use_resolution_binning": False, "max_sequence_length": 24, "complex_human_instruction": None},
    "sana-sprint": {
        "use_resolution_binning": False,
        "max_sequence_length": 24,
        "complex_human_instruction": None,
    },
    "lumina2": {"max_sequence_length": 256},
}
"""Of a call, beside the prompt: short prompts, and what differs from family to family."""

"""The parts of the second embedded model, untrained, in plain classes of diffusers: a small FLUX."""

from __future__ import annotations

from typing import Any

from npnet_training.scenes.grammar import WORDS

# Of the prompt's embeddings; the longest prompt has 13 words and two marks.
TOKENS, WIDTH, POOLED = 16, 96, 64
CHANNELS, FACTOR = 16, 8  # of latents: channels, pixels a side
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def make_tokenizer() -> Any:
    """Whole words of the grammar; adds an end mark, pads to any length."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate((PAD, END, UNKNOWN, *WORDS))}
    inner = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.normalizer, inner.pre_tokenizer = Lowercase(), Whitespace()
    inner.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, vocabulary[END])])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=TOKENS, pad_token=PAD, eos_token=END, unk_token=UNKNOWN
    )


def make_text_encoder(tokenizer: Any) -> Any:
    """A T5EncoderModel of three layers, 96 wide: one state for each token."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=WIDTH // 4, d_ff=3 * WIDTH, num_layers=3,
        num_heads=4, relative_attention_num_buckets=16, relative_attention_max_distance=TOKENS,
        dropout_rate=0.0, feed_forward_proj="gated-gelu", pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return T5EncoderModel(config)


def make_pooled_encoder(tokenizer: Any) -> Any:
    """A CLIPTextModel of one layer, 64 wide: one state for the prompt."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=POOLED, intermediate_size=2 * POOLED, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=POOLED,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.unk_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def make_autoencoder() -> Any:
    """An AutoencoderKL of HxW pixels to 16 x H/8 x W/8 latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96), layers_per_block=1, norm_num_groups=8, latent_channels=CHANNELS,
        sample_size=64, use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False,
        shift_factor=0.0,
    )  # fmt: skip


def make_transformer() -> Any:
    """A FluxTransformer2DModel on packed latents, 16 tokens for 64x64 pixels; predicts velocity."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4 * CHANNELS, num_layers=3, num_single_layers=4, attention_head_dim=32,
        num_attention_heads=4, joint_attention_dim=WIDTH, pooled_projection_dim=POOLED, guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )  # fmt: skip


def make_scheduler() -> Any:
    """Rectified flow, shifted the more the larger the image, as FLUX.1-dev's: by 0.5 to 1.15 in its terms.

    FLUX's own figures are for hundreds of tokens; these are for the 12 and 16 of this world.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15,
        base_image_seq_len=12, max_image_seq_len=64,
    )  # fmt: skip

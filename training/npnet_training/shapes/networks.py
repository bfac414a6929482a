"""The parts of the embedded text-to-image model: plain classes of diffusers and transformers, untrained."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from npnet_training.shapes.grammar import COLOURS, SHAPES

TOKENS, WIDTH = 16, 64  # of the prompt's embedding: the longest prompt has 13 words and two marks
LATENT_SHAPE = (4, 16, 16)
WORDS = ("a", *COLOURS, *SHAPES, "left", "of", "right", "above", "below")
START, END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer() -> Any:
    """A CLIPTokenizer whose merges make one token of every word of the grammar."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [START, END, *letters, *(letter + "</w>" for letter in letters)]
    merges: list[str] = []
    words = [[*word[:-1], word[-1] + "</w>"] for word in WORDS]
    # Each merge is made in all words before the next is chosen, as it will be when they are read.
    while longer := [word for word in words if len(word) > 1]:
        first, second = longer[0][:2]
        merges.append(f"{first} {second}")
        vocabulary.append(first + second)
        words = [_merged(word, first, second) for word in words]
    with tempfile.TemporaryDirectory() as folder:
        vocab, merge = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
        merge.write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS, bos_token=START, eos_token=END,
                                             unk_token=END, pad_token=END)  # fmt: skip


def _merged(word: list[str], first: str, second: str) -> list[str]:
    out: list[str] = []
    for piece in word:
        if piece == second and out and out[-1] == first:
            out[-1] = first + second
        else:
            out.append(piece)
    return out


def make_text_encoder(tokenizer: Any) -> Any:
    """A CLIPTextModel of two layers, 64 wide."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def make_autoencoder() -> Any:
    """An AutoencoderKL of 32x32 pixels to 4x16x16 latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(24, 48), layers_per_block=1, norm_num_groups=8, latent_channels=4, sample_size=32,
    )  # fmt: skip


def make_unet() -> Any:
    """A UNet2DConditionModel of three levels, the lower two attending to the prompt; predicts v."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip


def make_scheduler() -> Any:
    """Stable Diffusion's noise schedule, without a zero terminal SNR; v-prediction and trailing timesteps.

    The layout is decided at the noisiest timesteps. There v is its negative, while of epsilon it is one
    part in fifteen, which takes many times longer to learn.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing",
        prediction_type="v_prediction",
    )  # fmt: skip

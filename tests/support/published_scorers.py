"""Small random weights of the scorers, in the files and by the names their authors published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIDTH, LAYERS, PATCH, SIZE, PROJECTION = 32, 2, 8, 32, 16
BLIP_WIDTH = 128  # two heads of 64
WORDS = ("a", "red", "circle", "blue", "square", "left", "of", "##s", ",")
TEXT_CONFIG = {
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 24, "initializer_range": 0.02, "intermediate_size": 40,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 48, "model_type": "bert", "num_attention_heads": 3,
    "num_hidden_layers": LAYERS, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 5 + len(WORDS),
    "encoder_width": 768, "add_cross_attention": True,
}  # fmt: skip


class _Draw:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 0.3, mean: float = 0.0) -> Tensor:
        return mean + scale * torch.randn(shape, generator=self._generator)

    def linear(self, name: str, out: int, inner: int) -> dict[str, Tensor]:
        return {f"{name}.weight": self(out, inner), f"{name}.bias": self(out)}

    def norm(self, name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": self(width, mean=1.0), f"{name}.bias": self(width)}


def open_clip_state(vocabulary: int) -> dict[str, Tensor]:
    """As `open_clip.model.CLIP.state_dict()`."""
    draw = _Draw(1)
    state: dict[str, Tensor] = {
        "positional_embedding": draw(16, WIDTH), "text_projection": draw(WIDTH, PROJECTION),
        "logit_scale": torch.tensor(4.6), "token_embedding.weight": draw(vocabulary, WIDTH),
        "visual.class_embedding": draw(WIDTH), "visual.positional_embedding": draw(17, WIDTH),
        "visual.proj": draw(WIDTH, PROJECTION), "visual.conv1.weight": draw(WIDTH, 3, PATCH, PATCH),
    }  # fmt: skip
    for name in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        state |= draw.norm(name, WIDTH)
    for tower in ("visual.", ""):
        for number in range(LAYERS):
            block = f"{tower}transformer.resblocks.{number}"
            state |= {
                f"{block}.attn.in_proj_weight": draw(3 * WIDTH, WIDTH),
                f"{block}.attn.in_proj_bias": draw(3 * WIDTH),
                **draw.linear(f"{block}.attn.out_proj", WIDTH, WIDTH),
                **draw.norm(f"{block}.ln_1", WIDTH),
                **draw.norm(f"{block}.ln_2", WIDTH),
                **draw.linear(f"{block}.mlp.c_fc", 64, WIDTH),
                **draw.linear(f"{block}.mlp.c_proj", WIDTH, 64),
            }
    return state


def head_state(width: int, prefix: str = "") -> dict[str, Tensor]:
    """As `MLP.state_dict()` of the aesthetic predictor and of ImageReward."""
    draw = _Draw(2)
    sizes = {"0": (1024, width), "2": (128, 1024), "4": (64, 128), "6": (16, 64), "7": (1, 16)}
    state: dict[str, Tensor] = {}
    for number, (out, inner) in sizes.items():
        state |= draw.linear(f"{prefix}layers.{number}", out, inner)
    return state


def image_reward_state() -> dict[str, Tensor]:
    """As `ImageReward.state_dict()`."""
    draw, text = _Draw(3), TEXT_CONFIG["hidden_size"]
    state: dict[str, Tensor] = {
        # So small that the epsilon of the first norm counts.
        "blip.visual_encoder.cls_token": draw(1, 1, BLIP_WIDTH, scale=1e-3),
        "blip.visual_encoder.pos_embed": draw(1, 17, BLIP_WIDTH, scale=1e-3),
        "blip.visual_encoder.patch_embed.proj.weight": draw(BLIP_WIDTH, 3, PATCH, PATCH),
        "blip.visual_encoder.patch_embed.proj.bias": draw(BLIP_WIDTH),
        **draw.norm("blip.visual_encoder.norm", BLIP_WIDTH),
        "blip.text_encoder.embeddings.position_ids": torch.arange(48)[None],
        "blip.text_encoder.embeddings.word_embeddings.weight": draw(TEXT_CONFIG["vocab_size"], text),
        "blip.text_encoder.embeddings.position_embeddings.weight": draw(48, text),
        **draw.norm("blip.text_encoder.embeddings.LayerNorm", text),
        **draw.linear("blip.vision_proj", 256, BLIP_WIDTH),
        **draw.linear("blip.text_proj", 256, text),
        **head_state(text, "mlp."),
    }
    for number in range(LAYERS):
        block = f"blip.visual_encoder.blocks.{number}"
        layer = f"blip.text_encoder.encoder.layer.{number}"
        state |= {
            **draw.norm(f"{block}.norm1", BLIP_WIDTH),
            **draw.norm(f"{block}.norm2", BLIP_WIDTH),
            **draw.linear(f"{block}.attn.qkv", 3 * BLIP_WIDTH, BLIP_WIDTH),
            **draw.linear(f"{block}.attn.proj", BLIP_WIDTH, BLIP_WIDTH),
            **draw.linear(f"{block}.mlp.fc1", 4 * BLIP_WIDTH, BLIP_WIDTH),
            **draw.linear(f"{block}.mlp.fc2", BLIP_WIDTH, 4 * BLIP_WIDTH),
            **draw.linear(f"{layer}.intermediate.dense", TEXT_CONFIG["intermediate_size"], text),
            **draw.linear(f"{layer}.output.dense", text, TEXT_CONFIG["intermediate_size"]),
            **draw.norm(f"{layer}.output.LayerNorm", text),
        }
        for attention, inner in (("attention", text), ("crossattention", BLIP_WIDTH)):
            state |= {
                **draw.linear(f"{layer}.{attention}.self.query", text, text),
                **draw.linear(f"{layer}.{attention}.self.key", text, inner),
                **draw.linear(f"{layer}.{attention}.self.value", text, inner),
                **draw.linear(f"{layer}.{attention}.output.dense", text, text),
                **draw.norm(f"{layer}.{attention}.output.LayerNorm", text),
            }
    return state


def write_clip(folder: Path) -> str:
    """A whole CLIP as `save_pretrained` writes it, with its tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from npnet_training.shapes.networks import make_tokenizer

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    sizes = {
        "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "hidden_act": "gelu",
    }  # fmt: skip
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 1}
    vision = {**sizes, "image_size": SIZE, "patch_size": PATCH}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION)
    CLIPModel(config).save_pretrained(folder)
    images: Any = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


def write_hpsv2(folder: Path, vocabulary: int) -> str:
    """`HPS_v2.1_compressed.pt`."""
    folder.mkdir()
    torch.save({"epoch": 1, "state_dict": open_clip_state(vocabulary)}, folder / "HPS_v2.1_compressed.pt")
    return str(folder)


def write_aesthetic(folder: Path) -> str:
    """`sac+logos+ava1-l14-linearMSE.pth`."""
    folder.mkdir()
    torch.save(head_state(PROJECTION), folder / "sac+logos+ava1-l14-linearMSE.pth")
    return str(folder)


def write_image_reward(folder: Path) -> str:
    """`ImageReward.pt`, `med_config.json` and, in the same folder, BERT's tokenizer."""
    from transformers import BertTokenizer

    folder.mkdir()
    torch.save(image_reward_state(), folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(TEXT_CONFIG))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return str(folder)

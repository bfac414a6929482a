"""A small Stable Diffusion as one file in the layout of its authors, whose names diffusers reads back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_single_file(pipe: Any, path: Path) -> None:
    """Write a `StableDiffusionPipeline` of `support.pipelines` as one file."""
    state = {f"model.diffusion_model.{name}": value for name, value in _unet(pipe.unet)}
    state |= {f"first_stage_model.{name}": value for name, value in _vae(pipe.vae)}
    for name, value in pipe.text_encoder.state_dict().items():
        own = name if name.startswith("text_model.") else f"text_model.{name}"
        state[f"cond_stage_model.transformer.{own}"] = value
    save_file({name: value.contiguous().clone() for name, value in state.items()}, path)


def _unet(unet: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in unet.state_dict().items():
        own = next(prefix for prefix in sorted(_UNET, key=len, reverse=True) if name.startswith(f"{prefix}."))
        rest = name.removeprefix(f"{own}.")
        if ".resnets." in f".{own}.":
            part, _, leaf = rest.rpartition(".")
            rest = f"{_RESNET[part]}.{leaf}"
        yield f"{_UNET[own]}.{rest}", value


def _vae(vae: Any) -> Iterator[tuple[str, torch.Tensor]]:
    levels = len(vae.config.block_out_channels)
    for name, value in vae.state_dict().items():
        rest = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        for number in (0, 1):
            rest = rest.replace(f"mid_block.resnets.{number}.", f"mid.block_{number + 1}.")
        for level in range(levels):
            rest = rest.replace(f"down_blocks.{level}.", f"down.{level}.")
            rest = rest.replace(f"up_blocks.{level}.", f"up.{levels - 1 - level}.")
        rest = rest.replace(".resnets.", ".block.").replace("samplers.0.", "sample.")
        if "attentions" in rest:
            rest = rest.replace("mid_block.attentions.0.", "mid.attn_1.")
            for own, theirs in _ATTENTION.items():
                rest = rest.replace(f"attn_1.{own}.", f"attn_1.{theirs}.")
            if value.dim() == 2:
                value = value[..., None, None]
        yield rest, value

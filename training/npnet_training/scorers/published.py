"""Weights of scorers as their authors published them, renamed to what transformers calls them.

The published code needs open_clip, timm or torchvision; transformers has the same networks.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npnet_training.errors import ScorerError

State = Mapping[str, Tensor]

# open_clip's `CLIP` (tgxs002/HPSv2, hpsv2/src/open_clip) and transformers' `CLIPModel`.
_CLIP = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_TRANSPOSED = {"text_projection", "visual.proj"}  # matrices there, linear layers here
_CLIP_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_CLIP_JOINED = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")

# BLIP's `VisionTransformer` (salesforce/BLIP, models/vit.py) and transformers' `BlipVisionModel`.
_BLIP_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_BLIP_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_BLIP_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}

HEAD = ("0", "2", "4", "6", "7")  # the linear layers of both heads; dropout stands between the first four


def fetch(source: str, name: str, *, offline: bool) -> Path:
    """A file of a repository of the hub, or of a folder.

    Raises:
        ScorerError: it is not there, or cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        if Path(source).is_dir():
            return (Path(source) / name).resolve(strict=True)
        return Path(hf_hub_download(source, name, local_files_only=offline))
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise ScorerError(f"{name} of {source}: {error}") from error


def read_state(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a PyTorch file, or of its entry `key`; nothing else of the file is run or read.

    Raises:
        ScorerError: damaged, or no such file.
    """
    try:
        # Files of before PyTorch 1.6 are no archives and cannot be mapped.
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        values = values if key is None else values[key]
        found = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    except (OSError, RuntimeError, EOFError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        raise ScorerError(
            f"{path}: expected a PyTorch file of tensors{'' if key is None else f' under {key!r}'}, but "
            f"{type(error).__name__}: {error}; delete it, it is downloaded again"
        ) from error
    return found


def fill(cls: Any, config: Any, state: State, **options: Any) -> Any:
    """A model of transformers with the given weights, in float32, for inference.

    Args:
        cls: of the model.
        config: of transformers, for `cls`.
        state: weights by transformers' names; others are left out.
        options: of `cls`.

    Raises:
        ScorerError: a weight is missing or of another shape.
    """
    try:
        model, report = cls.from_pretrained(
            None, config=config, state_dict=dict(state), output_loading_info=True, **options
        )
    except RuntimeError as error:  # shapes
        raise ScorerError(f"the weights are of another {cls.__name__}: {error}") from error
    if report["missing_keys"]:
        raise ScorerError(
            f"the weights are of another {cls.__name__}: without {', '.join(sorted(report['missing_keys']))}"
        )
    return model.float().eval()


def open_clip_state(state: State) -> dict[str, Tensor]:
    """Weights of open_clip's CLIP by the names of `CLIPModel`.

    Raises:
        ScorerError: a weight is none of CLIP's.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in _CLIP:
            found[_CLIP[name]] = value.T.contiguous() if name in _TRANSPOSED else value
        elif match := _CLIP_JOINED.fullmatch(name):
            layer = f"{_tower(match[1])}.encoder.layers.{match[2]}.self_attn"
            for part, projection in zip(value.chunk(3), "qkv", strict=True):
                found[f"{layer}.{projection}_proj.{match[3]}"] = part.contiguous()
        elif (match := _CLIP_BLOCK.fullmatch(name)) and match[3] in _CLIP_LAYER:
            layer = f"{_tower(match[1])}.encoder.layers.{match[2]}"
            found[f"{layer}.{_CLIP_LAYER[match[3]]}.{match[4]}"] = value
        else:
            raise ScorerError(f"expected weights of open_clip's CLIP, given {name!r}")
    return found


def blip_vision_state(state: State) -> dict[str, Tensor]:
    """Weights of BLIP's image encoder by the names of `BlipVisionModel`.

    Raises:
        ScorerError: a weight is none of it.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in _BLIP_VISION:
            found[_BLIP_VISION[name]] = value
        elif (match := _BLIP_BLOCK.fullmatch(name)) and match[2] in _BLIP_LAYER:
            found[f"encoder.layers.{match[1]}.{_BLIP_LAYER[match[2]]}.{match[3]}"] = value
        else:
            raise ScorerError(f"expected weights of BLIP's image encoder, given {name!r}")
    return found


def part(state: State, prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def linear_head(state: State) -> nn.Sequential:
    """The head of the aesthetic predictor and of ImageReward: five linear layers, nothing between them.

    Args:
        state: `layers.N.weight` and `layers.N.bias` for N in `HEAD`.

    Raises:
        ScorerError: other names or shapes.
    """
    expected = {f"layers.{number}.{kind}" for number in HEAD for kind in ("weight", "bias")}
    if set(state) != expected:
        raise ScorerError(f"expected a head of {sorted(expected)}, given {sorted(state)}")
    layers = []
    for number in HEAD:
        weight, bias = state[f"layers.{number}.weight"], state[f"layers.{number}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    return nn.Sequential(*layers).eval()


def _tower(visual: str | None) -> str:
    return "vision_model" if visual else "text_model"

"""Checkpoint files in the published forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from npnet_runtime.weights.published import published_name
from support.networks import DATA


def published_groups(state: dict[str, Tensor]) -> dict[str, Any]:
    """The dict that a published `.pth` holds, the unused tensors included."""
    groups: dict[str, Any] = {"unet_svd": {}, "unet_embedding": {}, "embeeding": {}}
    for name, value in state.items():
        group, _, key = published_name(name).partition(".")
        if key:
            groups[group][key] = value.clone()
        else:
            groups[group] = value.reshape(1).clone().requires_grad_()
    groups["unet_svd"] |= {"bn.weight": torch.ones(4), "bn.num_batches_tracked": torch.tensor(7)}
    groups["unet_embedding"]["swin.head.fc.weight"] = torch.ones(10, 8)
    groups["unet_embedding"]["swin.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(2, 2).long()
    groups["unet_embedding"]["swin.layers.0.blocks.1.attn_mask"] = torch.zeros(2, 2)
    return groups


def write_pth(path: Path, state: dict[str, Tensor]) -> Path:
    """The form the authors released."""
    torch.save(published_groups(state), path)
    return path


def write_safetensors(path: Path, state: dict[str, Tensor], text_prefix: str) -> Path:
    """The converted forms, whose prefix of the text affine differs."""
    flat = {}
    for group, value in published_groups(state).items():
        prefix = text_prefix if group == "embeeding" else group
        if isinstance(value, Tensor):
            flat[prefix] = value.detach()
        else:
            flat |= {f"{prefix}.{key}": tensor for key, tensor in value.items()}
    save_file(flat, path)
    return path


def published_shapes() -> dict[str, list[int]]:
    """Every key of the released SDXL file and its shape, as the authors' file lists them."""
    groups = json.loads((DATA / "checkpoint_keys_sdxl.json").read_text())
    return {f"{group}.{key}": shape for group, keys in groups.items() for key, shape in keys.items()}

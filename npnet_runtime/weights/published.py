"""The tensor names of the published checkpoints, for each name of `NPNet.state_dict`."""

from __future__ import annotations

import re
from collections.abc import Callable

GROUPS = ("unet_svd", "unet_embedding", "alpha", "beta")
TEXT_GROUPS = ("embeeding", "text_embedding")  # as the authors spell it, and as one conversion does

_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"spectral_head\.u_mlp\.", "unet_svd.mlp1."),
    (r"spectral_head\.v_mlp\.", "unet_svd.mlp2."),
    (r"spectral_head\.s_linear\.", "unet_svd.mlp3.0."),
    (r"spectral_head\.f_mlp\.", "unet_svd.mlp4."),
    (r"spectral_head\.", "unet_svd.attention."),
    (r"prompt_half\.text_affine\.", "TEXT.linear."),
    (r"prompt_half\.to_rgb\.", "unet_embedding.downconv."),
    (r"prompt_half\.from_features\.", "unet_embedding.upconv."),
    (r"prompt_half\.patch_embed\.", "unet_embedding.swin.patch_embed.proj."),
    (r"prompt_half\.swin\.patch_norm\.", "unet_embedding.swin.patch_embed.norm."),
    (r"prompt_half\.swin\.stages\.(\d+)\.", r"unet_embedding.swin.layers.\1.blocks."),
    # timm >= 0.9 counts a merge to the stage behind it
    (
        r"prompt_half\.swin\.merges\.(\d+)\.",
        lambda match: f"unet_embedding.swin.layers.{int(match[1]) + 1}.downsample.",
    ),
    (r"prompt_half\.swin\.norm\.", "unet_embedding.swin.norm."),
]

# An ImageNet head, a BatchNorm that nothing reads and, from older timm, constants.
_UNUSED = re.compile(r"unet_svd\.bn\.|unet_embedding\.swin\.head\.|.*\.(relative_position_index|attn_mask)$")


def published_name(own: str, text_group: str = TEXT_GROUPS[0]) -> str:
    """Name in a published checkpoint of a tensor of `NPNet.state_dict`.

    Args:
        own: a key of `NPNet.state_dict`.
        text_group: what the file calls its text affine, one of `TEXT_GROUPS`.
    """
    for pattern, replacement in _RULES:
        published, count = re.subn(f"^{pattern}", replacement, own)
        if count:
            return published.replace("TEXT.", f"{text_group}.")
    return own


def is_unused(published: str) -> bool:
    """Whether published checkpoints hold this tensor although the network does not need it."""
    return _UNUSED.match(published) is not None

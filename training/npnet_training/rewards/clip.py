"""PickScore and CLIPScore as functions of the pixels; the scorers of the same names see PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from npnet_training.errors import RewardError
from npnet_training.scorers.clip import CLIPScore, LoadedCLIP, PickScore


class CLIPReward(LoadedCLIP):
    """2.5 cos (arXiv 2104.08718, section 3.1), not cut at 0, where it would have no gradient."""

    weights, processor = CLIPScore.weights, CLIPScore.processor

    def reward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See `Reward`."""
        return 2.5 * self.cosines(images, prompts)

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) cosine of each image's embedding and its prompt's.

        Args:
            images: (B, 3, height, width) in [0, 1].
            prompts: B of them.
        """
        tokens = self._processor(text=list(prompts), return_tensors="pt", padding=True, truncation=True)
        pixels = preprocess(images.to(self.device, torch.float32), self._processor.image_processor)
        out = self._model(**tokens.to(self.device), pixel_values=pixels)
        return F.cosine_similarity(out.image_embeds.float(), out.text_embeds.float())


class PickReward(CLIPReward):
    """Cosine times the model's scale, about 100 (arXiv 2305.01569, section 4)."""

    weights, processor = PickScore.weights, PickScore.processor

    def reward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See `Reward`."""
        return self._model.logit_scale.exp() * self.cosines(images, prompts)


def preprocess(images: Tensor, processor: Any) -> Tensor:
    """What a CLIPImageProcessor does, on tensors and without rounding to 8 bits.

    Args:
        images: (B, 3, height, width) in [0, 1].
        processor: whose sizes, mean and deviation to take; it resizes with a bicubic filter.

    Returns:
        (B, 3, crop height, crop width).

    Raises:
        RewardError: it resizes or crops in a way that is not known here.
    """
    size, crop = dict(processor.size), dict(processor.crop_size)
    edge = size.get("shortest_edge")
    height, width = images.shape[-2:]
    if edge:
        # the longer side as transformers rounds it
        side = int(edge * max(height, width) / min(height, width))
        height, width = (edge, side) if height <= width else (side, edge)
    elif size.get("height") and size.get("width"):
        height, width = size["height"], size["width"]
    else:
        raise RewardError(f"expected an image processor with a size of shortest_edge, given {size}")
    top, left = (height - crop["height"]) // 2, (width - crop["width"]) // 2
    if min(top, left) < 0:
        raise RewardError(f"expected an image processor that crops from more, given {crop} from {size}")
    # The filter overshoots at edges, which 8 bits would cut.
    images = F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    images = images[..., top : top + crop["height"], left : left + crop["width"]]
    mean, std = (
        images.new_tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std)
    )
    return (images - mean) / std

"""Scorers that compare embeddings of CLIP (arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image


class LoadedCLIP:
    """A frozen CLIP and its processor, from the hub or a folder."""

    weights: str
    processor: str

    def __init__(
        self,
        *,
        device: str | torch.device = "cpu",
        offline: bool = False,
        weights: str | None = None,
        processor: str | None = None,
    ) -> None:
        from transformers import AutoProcessor, CLIPModel

        # Any: transformers' own annotations are of tuples and strings.
        load_model: Any = CLIPModel.from_pretrained
        load_processor: Any = AutoProcessor.from_pretrained
        self.device = torch.device(device)
        self._model = load_model(weights or self.weights, local_files_only=offline).eval().to(self.device)
        self._model.requires_grad_(False)
        self._processor = load_processor(processor or self.processor, local_files_only=offline)


class _CLIP(LoadedCLIP):
    @torch.no_grad()
    def cosines(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Tensor:
        """(B,) cosine of each image's embedding and its prompt's."""
        inputs = self._processor(
            text=list(prompts), images=[image.convert("RGB") for image in images], return_tensors="pt",
            padding=True, truncation=True,
        ).to(self.device)  # fmt: skip
        out = self._model(**inputs)
        return F.cosine_similarity(out.image_embeds.float(), out.text_embeds.float())


class CLIPScore(_CLIP):
    """2.5 max(cos, 0) (Hessel et al., arXiv 2104.08718, section 3.1), ViT-B/32."""

    weights = processor = "openai/clip-vit-base-patch32"

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        """See `Scorer`."""
        values: list[float] = (2.5 * self.cosines(prompts, images).clamp(min=0)).tolist()
        return values


class PickScore(_CLIP):
    """Cosine times the model's scale, about 100 (Kirstain et al., arXiv 2305.01569, section 4)."""

    weights = "yuvalkirstain/PickScore_v1"
    processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        """See `Scorer`."""
        values: list[float] = (self._model.logit_scale.exp().item() * self.cosines(prompts, images)).tolist()
        return values

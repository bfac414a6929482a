"""LAION's aesthetic predictor, version 2: a linear head on CLIP ViT-L/14 (christophschuhmann, GitHub)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from npnet_training.scorers.published import fetch, linear_head, read_state

if TYPE_CHECKING:
    from PIL import Image


class Aesthetic:
    """How much people like an image on average, about 1 to 10; it does not see the prompt.

    Args:
        device: where it runs.
        offline: take weights from the hub's cache only.
        weights: repository or folder with `sac+logos+ava1-l14-linearMSE.pth`.
        processor: repository or folder of the CLIP whose image embeddings it reads.

    Raises:
        ScorerError: the head cannot be fetched, or is of another kind.
        OSError: CLIP cannot be loaded.
    """

    weights = "camenduru/improved-aesthetic-predictor"
    processor = "openai/clip-vit-large-patch14"
    file = "sac+logos+ava1-l14-linearMSE.pth"

    def __init__(
        self,
        *,
        device: str | torch.device = "cpu",
        offline: bool = False,
        weights: str | None = None,
        processor: str | None = None,
    ) -> None:
        from transformers import CLIPImageProcessor, CLIPModel

        head = linear_head(read_state(fetch(weights or self.weights, self.file, offline=offline)))
        # Any: transformers' own annotations are of tuples and strings.
        load_model: Any = CLIPModel.from_pretrained
        load_processor: Any = CLIPImageProcessor.from_pretrained
        clip = load_model(processor or self.processor, local_files_only=offline).float().eval()
        self.device = torch.device(device)
        self._vision, self._projection = (
            module.to(self.device) for module in (clip.vision_model, clip.visual_projection)
        )
        self._head = head.to(self.device)
        self._processor = load_processor(processor or self.processor, local_files_only=offline)

    @torch.no_grad()
    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        """See `Scorer`."""
        inputs = self._processor([image.convert("RGB") for image in images], return_tensors="pt")
        seen = self._vision(pixel_values=inputs["pixel_values"].to(self.device)).pooler_output
        embeds = self._projection(seen)
        values: list[float] = self._head(F.normalize(embeds))[:, 0].tolist()
        return values

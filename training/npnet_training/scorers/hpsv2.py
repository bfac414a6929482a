"""Human preference score v2.1 (arXiv 2306.09341): a CLIP ViT-H/14 trained on people's choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from npnet_training.scorers.published import fetch, fill, open_clip_state, read_state

if TYPE_CHECKING:
    from PIL import Image

# OpenAI's statistics, as the published code takes them.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class HPSv2:
    """Cosine of image and prompt, about 0.2 to 0.35.

    The published code runs it under autocast on a GPU; here it is float32, which is closer to its weights.

    Args:
        device: where it runs.
        offline: take weights from the hub's cache only.
        weights: repository or folder with `HPS_v2.1_compressed.pt`.
        processor: repository or folder with the configuration and tokenizer of the CLIP that it began from.

    Raises:
        ScorerError: the weights cannot be fetched, or are of another model.
        OSError: so the configuration.
    """

    weights = "xswu/HPSv2"
    processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    file = "HPS_v2.1_compressed.pt"

    def __init__(
        self,
        *,
        device: str | torch.device = "cpu",
        offline: bool = False,
        weights: str | None = None,
        processor: str | None = None,
    ) -> None:
        from transformers import AutoTokenizer, CLIPConfig, CLIPModel

        # Any: transformers' own annotations are of tuples and strings.
        load_config: Any = CLIPConfig.from_pretrained
        load_tokenizer: Any = AutoTokenizer.from_pretrained
        config = load_config(processor or self.processor, local_files_only=offline)
        self._tokenizer = load_tokenizer(processor or self.processor, local_files_only=offline)
        state = read_state(fetch(weights or self.weights, self.file, offline=offline), "state_dict")
        self.device = torch.device(device)
        self._model = fill(CLIPModel, config, open_clip_state(state)).to(self.device)

    @torch.no_grad()
    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        """See `Scorer`."""
        size = self._model.config.vision_config.image_size
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(prompts), return_tensors="pt", padding=True, truncation=True, max_length=length
        ).to(self.device)
        pixels = torch.stack([prepare(image, size) for image in images]).to(self.device)
        out = self._model(pixel_values=pixels, **tokens)
        values: list[float] = F.cosine_similarity(out.image_embeds, out.text_embeds).tolist()
        return values


def prepare(image: Image.Image, size: int) -> Tensor:
    """An image as HPSv2 sees it: the longer side made `size`, black on both ends of the shorter, normalised.

    Returns:
        (3, size, size) float32.
    """
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    height, width = pixels.shape[1:]
    scale = size / max(height, width)
    if scale != 1:
        # Not before 1: an image of 1 by 1,000 pixels is still an image.
        shape = max(1, round(height * scale)), max(1, round(width * scale))
        # As torchvision resizes tensors, which are not clamped to 0..1.
        pixels = F.interpolate(pixels[None], shape, mode="bicubic", antialias=True)[0]
    tall, wide = (size - side for side in pixels.shape[1:])
    pixels = F.pad(pixels, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
    return (pixels - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]

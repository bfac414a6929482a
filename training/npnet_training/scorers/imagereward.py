"""ImageReward (arXiv 2304.05977): BLIP reads the image and the prompt together, a linear head scores them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from npnet_training.errors import ScorerError
from npnet_training.scorers.published import (
    State,
    blip_vision_state,
    fetch,
    fill,
    linear_head,
    part,
    read_state,
)

if TYPE_CHECKING:
    from PIL import Image

# Of the rewards on the authors' training set (THUDM/ImageReward, ImageReward/ImageReward.py).
MEAN, STD = 0.16717362830052426, 1.0333394966054072
_TOKENS = 35
_HEAD_WIDTH = 64  # of both sizes of BLIP's image encoder
# Names in the published `med_config.json`, all of which transformers' `BlipTextConfig` has.
_TEXT = (
    "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings",
    "num_attention_heads", "num_hidden_layers", "pad_token_id", "vocab_size",
)  # fmt: skip


class ImageReward:
    """Reward in deviations of the authors' training set, about -2 to 2.

    Args:
        device: where it runs.
        offline: take weights from the hub's cache only.
        weights: repository or folder with `ImageReward.pt` and `med_config.json`.
        processor: repository or folder of BERT's tokenizer.

    Raises:
        ScorerError: the weights cannot be fetched, or are of another model.
        OSError: so the tokenizer.
    """

    weights = "THUDM/ImageReward"
    processor = "google-bert/bert-base-uncased"

    def __init__(
        self,
        *,
        device: str | torch.device = "cpu",
        offline: bool = False,
        weights: str | None = None,
        processor: str | None = None,
    ) -> None:
        from transformers import AutoTokenizer, BlipTextModel, BlipVisionModel, CLIPImageProcessor

        source = weights or self.weights
        # Any: transformers' own annotations are of tuples and strings.
        load_tokenizer: Any = AutoTokenizer.from_pretrained
        make_processor: Any = CLIPImageProcessor
        self._tokenizer = load_tokenizer(processor or self.processor, local_files_only=offline)
        state = read_state(fetch(source, "ImageReward.pt", offline=offline))
        vision = part(state, "blip.visual_encoder.")
        config = _vision_config(vision)
        self.device = torch.device(device)
        self._vision = fill(BlipVisionModel, config, blip_vision_state(vision)).to(self.device)
        # Its names are transformers' already.
        text = part(state, "blip.text_encoder.")
        text.pop("embeddings.position_ids", None)
        text_config = _text_config(fetch(source, "med_config.json", offline=offline), config.hidden_size)
        self._text = fill(BlipTextModel, text_config, text, add_pooling_layer=False).to(self.device)
        self._head = linear_head(part(state, "mlp.")).to(self.device)
        size = config.image_size
        # Its other settings are the published ones: bicubic, centre crop, OpenAI's mean and deviation.
        self._processor = make_processor(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )

    @torch.no_grad()
    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        """See `Scorer`."""
        inputs = self._processor([image.convert("RGB") for image in images], return_tensors="pt")
        seen: Tensor = self._vision(inputs["pixel_values"].to(self.device)).last_hidden_state
        tokens = self._tokenizer(
            list(prompts), return_tensors="pt", padding="max_length", truncation=True, max_length=_TOKENS
        ).to(self.device)
        out = self._text(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=seen
        )
        rewards = self._head(out.last_hidden_state[:, 0])[:, 0]
        values: list[float] = ((rewards - MEAN) / STD).tolist()
        return values


def _vision_config(state: State) -> Any:
    """The image encoder's sizes, which are published only as code."""
    from transformers import BlipVisionConfig

    try:
        _, positions, width = state["pos_embed"].shape
        patch = state["patch_embed.proj.weight"].shape[-1]
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ScorerError(f"the weights are of another model: no image encoder of BLIP ({error})") from error
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_attention_heads=width // _HEAD_WIDTH,
        image_size=math.isqrt(positions - 1) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,  # timm's, which transformers' default is not
    )


def _text_config(path: Path, vision_width: int) -> Any:
    from transformers import BlipTextConfig

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        sizes = {name: values[name] for name in _TEXT}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ScorerError(
            f"{path}: expected the settings of the text encoder, but {type(error).__name__}: {error}"
        ) from error
    # A decoder only so that transformers makes the layers of cross-attention; it attends both ways.
    return BlipTextConfig(**sizes, encoder_hidden_size=vision_width, is_decoder=True)

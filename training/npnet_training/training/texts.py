"""What the trained network reads of a prompt: what the dataset's model encodes, or an encoder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from npnet_runtime.inputs.texts import Prompt
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.own_text import TextEncoder, load_text_encoder
from npnet_training.training.embeddings import Encode, model_key
from npnet_training.training.settings import OWN, TrainSettings
from npnet_training.training.source import SourceInfo
from npnet_training.training.source_model import source_denoiser


@dataclass(frozen=True)
class Texts:
    """Where embeddings come from.

    Args:
        shapes: of each field of `Prompt` that the network is given, of one prompt.
        key: names what encodes them, for the cache.
        encoder: of the network's own; None for the dataset's model.
    """

    shapes: dict[str, tuple[int, ...]]
    key: str
    encoder: TextEncoder | None = None

    @property
    def text_shape(self) -> tuple[int, int]:
        """(tokens, width) of the embeddings."""
        tokens, width = self.shapes["embeds"]
        return tokens, width

    def encode_by(self, info: SourceInfo, device: torch.device, *, offline: bool) -> Encode:
        """The function that encodes prompts; the dataset's model is loaded for it.

        Raises:
            ModelError: the model cannot be loaded.
            DatasetError: it is of another revision now.
        """
        if self.encoder is not None:
            return self.encoder.encode
        denoiser = source_denoiser(info, device, offline=offline)

        def encode(prompts: Sequence[str]) -> Prompt:
            return denoiser.prompt(denoiser.encode(prompts, unconditional=False))

        return encode


def texts_of(settings: TrainSettings, info: SourceInfo, device: torch.device | str = "cpu") -> Texts:
    """What a run's network reads.

    Args:
        settings: of the run.
        info: of its dataset.
        device: of an encoder of its own.

    Raises:
        InputError: there is no such encoder.
        DownloadError: the hub cannot be reached.
    """
    if settings.trains_lora:
        return Texts({}, "")  # the model itself reads the prompts
    whole = settings.network.kind == AnySizeConfig.kind
    if settings.text.startswith(OWN):
        name = settings.text.removeprefix(OWN)
        encoder = load_text_encoder(name, device=device, offline=settings.offline)
        shape = (encoder.id.tokens, encoder.id.width)
        own: dict[str, tuple[int, ...]] = {"embeds": shape} | ({"mask": shape[:1]} if whole else {})
        return Texts(own, model_key(f"own text {encoder.id.sha256}", None, torch.float32, own), encoder)
    shapes: dict[str, tuple[int, ...]] = dict(info.texts) if whole else {"embeds": info.text_shape}
    return Texts(shapes, model_key(info.model, info.revision, torch.float32, shapes))


def made_for(info: SourceInfo, texts: Texts) -> dict[str, Any]:
    """What the checkpoints of a run say they were trained in front of; see `Checkpoint.made_for`."""
    found: dict[str, Any] = {}
    if info.latent_space is not None:
        found["latent_space"] = info.latent_space
    if texts.encoder is not None:
        found["text_encoder"] = texts.encoder.id.to_dict()
    return found

"""A text-to-image model without its weights: its networks on the device `meta`, from configurations alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from npnet_runtime.weights.models import MODELS
from npnet_training.errors import ModelError
from npnet_training.planning.counting import parameters_of
from npnet_training.planning.known import KNOWN, Known

_VAE_CHANNELS = ("latent_channels", "z_dim")


@dataclass(frozen=True)
class Parts:
    """What there is of a model.

    Args:
        name: of the model.
        denoiser: on `meta`, frozen.
        autoencoder: likewise.
        text_parameters: of all its text encoders.
        latent: (C, H, W) of the noise of an image of its own size.
        factor: pixels to a latent, along each side.
        tokens: of a prompt, at most.
        mixes: whether guidance mixes two predictions.
        steps: of its images.
    """

    name: str
    denoiser: nn.Module
    autoencoder: nn.Module
    text_parameters: int
    latent: tuple[int, int, int]
    factor: int
    tokens: int
    mixes: bool
    steps: int


def parts_of(name: str, size: tuple[int, int] | None = None, *, offline: bool = False) -> Parts:
    """The parts of a model.

    Args:
        name: one of `KNOWN`, a registered model, or a folder or repository of diffusers, of which nothing but
            configurations is read.
        size: of the images in pixels; None for the model's own.
        offline: look in the hub's cache only.

    Raises:
        ModelError: there is none, or diffusers is missing.
    """
    known = KNOWN.get(name) or _named(name)
    with torch.device("meta"):
        if known is not None:
            made = _from_known(name, known, size)
        else:
            made = _from_configurations(name, size, offline=offline)
    for network in (made.denoiser, made.autoencoder):
        network.to(torch.bfloat16).eval().requires_grad_(False)
    return made


def _named(name: str) -> Known | None:
    repository = MODELS[name].base_model if name in MODELS else name
    return next((known for known in KNOWN.values() if known.repository == repository), None)


def _from_known(name: str, known: Known, size: tuple[int, int] | None) -> Parts:
    import diffusers

    denoiser = getattr(diffusers, known.denoiser[0])(**known.denoiser[1])
    autoencoder = getattr(diffusers, known.autoencoder[0])(**known.autoencoder[1])
    height, width = size or known.size
    latent = (known.channels, height // known.factor, width // known.factor)
    return Parts(
        name, denoiser, autoencoder, known.text_parameters, latent, known.factor, known.tokens, known.mixes,
        known.steps,
    )  # fmt: skip


def _from_configurations(name: str, size: tuple[int, int] | None, *, offline: bool) -> Parts:
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise ModelError(f"{name} needs diffusers ({error}): pip install 'npnet-runtime[train]'") from error
    source = str(Path(name).expanduser())
    where: dict[str, Any] = {"local_files_only": offline}
    networks: dict[str, nn.Module] = {}
    text = 0
    try:
        index = diffusers.DiffusionPipeline.load_config(source, **where)
        for part, entry in index.items():
            if not isinstance(entry, (list, tuple)) or len(entry) != 2 or entry[1] is None:
                continue
            library, kind = entry
            if library == "diffusers" and part in ("unet", "transformer", "vae"):
                made = getattr(diffusers, kind)
                networks[part] = made.from_config(made.load_config(source, subfolder=part, **where))
            elif library == "transformers" and part.startswith("text_encoder"):
                shapes = transformers.AutoConfig.from_pretrained(source, subfolder=part, **where)
                text += parameters_of(getattr(transformers, kind)._from_config(shapes))
        denoiser, autoencoder = networks.get("unet") or networks["transformer"], networks["vae"]
    except Exception as error:  # of diffusers, transformers and the hub, which share no base class
        raise ModelError(
            f"{name}: expected one of {', '.join(KNOWN)}, or a folder or repository of diffusers with "
            f"configurations ({type(error).__name__}: {error})"
        ) from error
    config: Any = autoencoder.config
    channels = next(int(getattr(config, c)) for c in _VAE_CHANNELS if hasattr(config, c))
    widths = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
    factor = 2 ** (len(widths) - 1)
    height, width = size or (1024, 1024)
    latent = (channels, height // factor, width // factor)
    embedded = bool(getattr(denoiser.config, "guidance_embeds", False))
    return Parts(name, denoiser, autoencoder, text, latent, factor, 512, not embedded, 30)

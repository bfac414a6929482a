"""The latent space of a pipeline, by its autoencoder, and whether it is the one a network was trained in."""

from __future__ import annotations

import warnings
from hashlib import sha256
from typing import Any

import torch

from npnet_runtime.bundles.made_for import LatentSpace
from npnet_runtime.errors import PipelineError

_KNOWN = (torch.float16, torch.float32)


def latent_space_of(pipe: Any, *, weights: bool = True) -> LatentSpace | None:
    """The latent space that a pipeline's noise is of; None where it has no autoencoder that says it.

    Args:
        pipe: of diffusers, or the components of Modular Diffusers.
        weights: whether to name the weights as well.
    """
    vae = getattr(pipe, "vae", None)
    config = getattr(vae, "config", None)
    channels = _number(config, "latent_channels", "z_dim")
    if channels is None:
        return None
    means, deviations = (_numbers(config, name) for name in ("latents_mean", "latents_std"))
    if means and deviations and (len(means), len(deviations)) != (channels, channels):
        means, deviations = (), ()
    scaling = None if means else _number(config, "scaling_factor")
    return LatentSpace(
        type(vae).__name__,
        int(channels),
        int(getattr(pipe, "vae_scale_factor", 0) or 0),
        scaling,
        _number(config, "shift_factor") or 0.0,
        means,
        deviations,
        _weights(vae) if weights else None,
    )


def check_latent_space(pipe: Any, wanted: LatentSpace | None, *, weights: bool = True) -> None:
    """Refuse a pipeline of another latent space than the network's; warn of other weights in the same one.

    Args:
        pipe: of diffusers.
        wanted: of the network; None if its bundle does not say.
        weights: whether to look at these as well.

    Raises:
        PipelineError: its autoencoder is configured otherwise.
    """
    given = None if wanted is None else latent_space_of(pipe, weights=weights)
    if wanted is None or given is None:
        return
    name = type(pipe).__name__
    if wrong := wanted.differences(given):
        raise PipelineError(
            f"pipe: expected one of the latent space that the network was trained in, {wanted.autoencoder} "
            f"with {'; '.join(wrong)} by {name}: the same noise means another image there; train a network "
            "for it, or attach one that npnet-export --list has for it"
        )
    if None not in (wanted.weights, given.weights) and wanted.weights != given.weights:
        warnings.warn(
            f"{name}: its autoencoder is configured as the one that golden noise was trained with, and has "
            "other weights; that is well where it is a fine-tuned copy, and golden noise does nothing where "
            "it was trained from nothing",
            UserWarning,
            stacklevel=4,
        )


def _number(config: Any, *names: str) -> Any:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int | float)), None)


def _numbers(config: Any, name: str) -> tuple[float, ...]:
    values = getattr(config, name, None)
    return tuple(map(float, values)) if isinstance(values, list | tuple) else ()


def _weights(vae: Any) -> str | None:
    """sha256 of the layer that the decoder begins with, in half precision: both kinds of file agree in it."""
    layer = getattr(getattr(vae, "decoder", None), "conv_in", None)
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.is_meta or weight.dtype not in _KNOWN:
        return None  # offloaded, quantised, or rounded otherwise
    return sha256(weight.detach().half().cpu().contiguous().numpy().tobytes()).hexdigest()

"""Whether golden noise can be attached to a pipeline, and used where it runs."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from npnet_runtime.devices import resolve_device
from npnet_runtime.errors import PipelineError
from npnet_runtime.networks.registry import NetworkConfig

# What diffusers' text-to-image pipelines copy from one another. Where it differs, the latents are made
# from an image, are packed, or are a video's.
PREPARE_LATENTS = (
    "self",
    "batch_size",
    "num_channels_latents",
    "height",
    "width",
    "dtype",
    "device",
    "generator",
    "latents",
)
ELSEWHERE = "call golden(noise, prompt_embeds) and pass the result as latents instead"


def denoiser(pipe: Any) -> Any:
    """The network that removes the noise: `pipe.unet` or `pipe.transformer`."""
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def check_pipeline(pipe: Any, config: NetworkConfig) -> None:
    """Check that `pipe` starts from noise, and reads text, of the shapes of the network.

    Raises:
        PipelineError: it does not.
    """
    name = type(pipe).__name__
    methods = ("encode_prompt", "prepare_latents", "vae_scale_factor", "scheduler", "_execution_device")
    lacking = [method for method in methods if not hasattr(pipe, method)]
    if not lacking and not (hasattr(pipe, "unet") or hasattr(pipe, "transformer")):
        lacking = ["unet or transformer"]
    if isinstance(pipe, type) or lacking:
        what = (
            f"the class {pipe.__name__}" if isinstance(pipe, type) else f"{name}, which has no {lacking[0]}"
        )
        raise PipelineError(
            f"pipe: expected a text-to-image pipeline of diffusers, given {what}; {ELSEWHERE}"
        )
    parameters = tuple(inspect.signature(type(pipe).prepare_latents).parameters)
    if parameters != PREPARE_LATENTS:
        raise PipelineError(
            f"pipe: expected a pipeline that starts from noise alone, given {name}, whose prepare_latents "
            f"takes {', '.join(parameters[1:])}; {ELSEWHERE}"
        )
    shapes = denoiser(pipe).config
    channels = getattr(shapes, "in_channels", None)
    if channels != config.latent_channels:
        raise PipelineError(
            f"pipe: expected noise of {config.latent_channels} channels, which the network was trained for, "
            f"given {name} with {channels}; attach an engine for this model (npnet-export --list)"
        )
    width = getattr(shapes, "cross_attention_dim", None)
    if width != config.text_dim:
        raise PipelineError(
            f"pipe: expected text embeddings of width {config.text_dim}, which the network was trained for, "
            f"given {name} with {width}; attach an engine for this model (npnet-export --list)"
        )


def check_device(runs_on: torch.device, device: torch.device) -> None:
    """Check that a pipeline makes its latents where the engine is.

    Raises:
        PipelineError: it does not.
    """
    runs_on = resolve_device(runs_on)
    if runs_on != device:
        raise PipelineError(
            f"pipe: expected a pipeline on {device}, where the engine is, given one that runs on {runs_on}; "
            f"move it with pipe.to({str(device)!r}), or attach GoldenNoise(..., device={str(runs_on)!r})"
        )

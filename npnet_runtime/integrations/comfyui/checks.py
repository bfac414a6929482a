"""What a graph may connect, said in the words of the graph: names of sockets and widgets, sizes in pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from npnet_runtime.bundles.manifest import Manifest
from npnet_runtime.errors import InputError
from npnet_runtime.inputs.checks import PIXELS_PER_LATENT
from npnet_runtime.inputs.prompts import TokenPolicy
from npnet_runtime.inputs.resolution import ResolutionPolicy, smallest_size
from npnet_runtime.inputs.texts import Prompt
from npnet_runtime.networks.any_size_config import AnySizeConfig


def positive_prompt(conditioning: Any, manifest: Manifest) -> Prompt:
    """What an engine reads of a CONDITIONING that holds one prompt, or one batch of prompts.

    Args:
        conditioning: a list of [embeddings (P, tokens, width), options], of which `attention_mask` and
            `pooled_output` are read where the network does.
        manifest: of the engine.

    Raises:
        InputError: it is no such list, holds several, as golden noise is made for one prompt, or lacks what
            the engine reads.
    """
    if manifest.text_encoder is not None:
        raise InputError(
            f"positive: the engine {manifest.model} reads prompts by a text encoder of its own, and a "
            "CONDITIONING has no text; it serves diffusers only"
        )
    if not isinstance(conditioning, list) or not conditioning:
        raise InputError(f"positive: expected a CONDITIONING, given {_name(conditioning)}")
    if len(conditioning) > 1:
        raise InputError(
            f"positive: expected one prompt, given {len(conditioning)} combined or scheduled ones; "
            "connect the CONDITIONING of the main prompt, before it is combined with others"
        )
    entry = conditioning[0]
    if not isinstance(entry, (list, tuple)) or not entry:
        raise InputError(f"positive: expected entries of embeddings and options, given {_name(entry)}")
    embeds = entry[0]
    if not isinstance(embeds, Tensor) or embeds.ndim != 3:
        shape = f" of shape {tuple(embeds.shape)}" if isinstance(embeds, Tensor) else ""
        raise InputError(f"positive: expected embeddings of a text, given {_name(embeds)}{shape}")
    config, options = manifest.config, entry[1] if len(entry) > 1 and isinstance(entry[1], dict) else {}
    if not isinstance(config, AnySizeConfig):
        return Prompt(embeds.detach())
    if config.second_dim:
        raise InputError(
            f"positive: the engine {manifest.model} reads two texts, and a CONDITIONING has one; it serves "
            f"diffusers only"
        )
    mask, pooled = options.get("attention_mask"), options.get("pooled_output")
    if config.pooled_dim and not isinstance(pooled, Tensor):
        raise InputError(
            f"positive: the engine {manifest.model} reads a pooled embedding, and this CONDITIONING has "
            f"none; connect the text encoder of the checkpoint that the engine was made for"
        )
    fits = isinstance(mask, Tensor) and mask.shape == embeds.shape[:2]
    return Prompt(embeds.detach(), mask if fits else None, pooled if config.pooled_dim else None)


def check_prompt(prompt: Prompt, manifest: Manifest, long_prompts: TokenPolicy) -> str | None:
    """Check a prompt for an engine; what the policy makes of it, if anything.

    Raises:
        InputError: it is another text encoder's, or of a length that the policy refuses.
    """
    embeds = prompt.given["prompt_embeds"]
    tokens, width = manifest.config.text_shape
    given = embeds.shape[1]
    most = manifest.config.most_tokens if isinstance(manifest.config, AnySizeConfig) else None
    if embeds.shape[2] != width:
        raise InputError(
            f"positive: the engine {manifest.model} reads embeddings {width} wide, these are "
            f"{embeds.shape[2]} wide, of another kind of model; load the engine that was made for the "
            f"checkpoint of this graph"
        )
    if given == tokens or (most is not None and given <= most):
        return None
    if most is not None:
        tokens, long_prompts = most, "error" if long_prompts == "average" else long_prompts
    if long_prompts == "error":
        raise InputError(
            f"positive: the prompt takes {given} tokens, and the engine reads {tokens}; shorten the prompt, "
            f"or set long_prompts to truncate or average"
        )
    if long_prompts == "average" and given > tokens and given % tokens:
        raise InputError(
            f"positive: long_prompts 'average' takes chunks of {tokens} tokens, and the prompt has {given}; "
            f"set long_prompts to truncate"
        )
    if given < tokens:
        return f"a prompt of {given} tokens: zeros for the rest of {tokens}"
    if long_prompts == "average":
        return f"a prompt of {given} tokens: the mean of its {given // tokens} chunks is read (long_prompts)"
    return f"a prompt of {given} tokens: its first {tokens} are read (long_prompts)"


def check_size(shape: tuple[int, ...], manifest: Manifest, other_sizes: ResolutionPolicy) -> str | None:
    """Check the size of latents for an engine; what the policy makes of it, if anything.

    Args:
        shape: (B, C, H, W).
        manifest: of the engine.
        other_sizes: the policy.

    Raises:
        InputError: no latents of an image, none at all, or of a size that the policy refuses.
    """
    if len(shape) != 4:
        raise InputError(
            f"latent_image: expected latents of images, (batch, channels, height, width), given {shape}"
        )
    if not shape[0]:
        raise InputError("latent_image: expected a batch of 1 or more, given none; set batch_size to 1")
    given, own, config = shape[2:], manifest.config.latent_shape[1:], manifest.config
    if given == own:
        return None
    if isinstance(config, AnySizeConfig):
        if not all(config.least_side <= side <= config.most_side for side in given):
            bounds = (config.least_side,) * 2, (config.most_side,) * 2
            raise InputError(
                f"latent_image: {_pixels(given)} pixels, and the engine {manifest.model} takes sides from "
                f"{_pixels(bounds[0])} to {_pixels(bounds[1])}; set another width and height"
            )
        return None
    least = smallest_size(manifest.config)
    if any(side < smallest for side, smallest in zip(given, least, strict=True)):
        raise InputError(
            f"latent_image: {_pixels(given)} pixels are too few for golden noise, which takes "
            f"{_pixels(least)} or more; set a larger width and height"
        )
    if other_sizes == "error":
        raise InputError(
            f"latent_image: {_pixels(given)} pixels, and the engine {manifest.model} was trained for "
            f"{_pixels(own)}; set other_sizes to transfer, or the size of the latent image to that"
        )
    return (
        f"{_pixels(given)} pixels: the change of golden noise at {_pixels(own)} is transferred (other_sizes)"
    )


def check_channels(shape: tuple[int, ...], manifest: Manifest) -> None:
    """Check the channels of noise that a sampler asks for.

    Raises:
        InputError: the checkpoint of the graph is of another kind than the engine.
    """
    own = manifest.config.latent_shape[0]
    if shape[1] != own:
        raise InputError(
            f"noise: the sampler asks for {shape[1]} channels, and the engine {manifest.model} makes {own}: "
            f"the checkpoint of this graph is of another kind; load the engine that was made for it"
        )


def _pixels(size: tuple[int, ...]) -> str:
    height, width = (PIXELS_PER_LATENT * side for side in size)
    return f"{width} x {height}"


def _name(thing: object) -> str:
    return type(thing).__name__

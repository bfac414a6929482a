"""Checks of noise and prompt embeddings, before anything is computed from them."""

from __future__ import annotations

import torch
from torch import Tensor

from npnet_runtime.errors import InputError
from npnet_runtime.inputs.prompts import TokenPolicy, check_tokens
from npnet_runtime.inputs.resolution import ResolutionPolicy, check_transferable
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.registry import NetworkConfig

DEVICES = ("cpu", "cuda")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BUILT_FOR = "this engine was built for that shape only"
# of the autoencoders of SDXL, DreamShaper and Hunyuan-DiT
PIXELS_PER_LATENT = 8


def check_noise(
    noise: Tensor,
    config: NetworkConfig,
    device: torch.device,
    resolution: ResolutionPolicy = "error",
    *,
    finite: bool = True,
) -> None:
    """Check a batch of initial noise.

    Args:
        noise: to be checked.
        config: shapes of the network.
        device: of the engine.
        resolution: what is done with other sizes H and W.
        finite: look at the values as well, which on CUDA makes the host wait.

    Raises:
        InputError: no tensor of shape (B, C, H, W), B >= 1, of a real floating dtype on the engine's
            device, or with a value that is not finite.
    """
    check_tensor("noise", noise)
    check_noise_shape(tuple(noise.shape), config, resolution)
    _check_kind("noise", noise, device)
    if finite:
        check_finite("noise", noise)


def check_prompt_embeds(
    prompt_embeds: Tensor,
    batch: int,
    config: NetworkConfig,
    device: torch.device,
    tokens: TokenPolicy = "error",
    *,
    finite: bool = True,
) -> None:
    """Check the prompt embeddings for a batch of noise.

    Args:
        prompt_embeds: one prompt, one per noise, or one per run of n noises (n images per prompt).
        batch: number of noises.
        config: shapes of the network.
        device: of the engine.
        tokens: what is done with other numbers of tokens.
        finite: as in `check_noise`.

    Raises:
        InputError: no tensor of shape (P, tokens, width) with P dividing the batch, of a real floating
            dtype on the engine's device, or with a value that is not finite.
    """
    check_tensor("prompt_embeds", prompt_embeds)
    check_prompt_shape(tuple(prompt_embeds.shape), batch, config, tokens)
    _check_kind("prompt_embeds", prompt_embeds, device)
    if finite:
        check_finite("prompt_embeds", prompt_embeds)


def check_finite(name: str, tensor: Tensor) -> None:
    """Check the values of a tensor.

    Args:
        name: of the argument.
        tensor: of a floating dtype.

    Raises:
        InputError: one is NaN, infinite, or too large for float32.
    """
    finite = tensor.float().isfinite()  # float64 may overflow on the way
    if not finite.all():
        bad = tensor.numel() - int(finite.sum())
        raise InputError(
            f"{name}: expected finite values, given {bad} that are NaN, infinite or too large for float32"
        )


def check_noise_shape(
    shape: tuple[int, ...], config: NetworkConfig, resolution: ResolutionPolicy = "error"
) -> None:
    """Check the shape of a batch of noise.

    Raises:
        InputError: it is not (B, C, H, W) with B >= 1.
    """
    expected, remedy = config.latent_shape, BUILT_FOR
    if isinstance(config, AnySizeConfig):
        if len(shape) == 4 and shape[1] == expected[0] and shape[2:] != expected[1:]:
            _check_bounds(shape[2:], config)
            expected = (expected[0], *shape[2:])
        else:
            remedy = "this engine was built for these channels only"
    elif len(shape) == 4 and shape[1] == expected[0] and shape[2:] != expected[1:] and all(shape):
        if resolution == "transfer":
            check_transferable(shape[2:], config)
            return
        height, width = (PIXELS_PER_LATENT * side for side in expected[1:])
        remedy = (
            f"images of {height} x {width} pixels at {PIXELS_PER_LATENT} to a latent, the only size that the "
            'network was trained for, have it; GoldenNoise(..., resolution="transfer") takes every size'
        )
    _check_shape("noise", shape, expected, ("batch", "C", "H", "W"), remedy)


def check_prompt_shape(
    shape: tuple[int, ...], batch: int, config: NetworkConfig, tokens: TokenPolicy = "error"
) -> None:
    """Check the shape of the prompt embeddings for a batch of noise.

    Raises:
        InputError: it is not (P, tokens, width) with P dividing the batch.
    """
    expected, remedy = config.text_shape, BUILT_FOR
    if isinstance(config, AnySizeConfig):
        if len(shape) == 3 and shape[1] and shape[2] == config.text_dim:
            if shape[1] > config.most_tokens and tokens != "truncate":
                raise InputError(
                    f"prompt_embeds: expected up to {config.most_tokens} tokens, given {shape[1]}; "
                    f'GoldenNoise(..., tokens="truncate") reads the first {config.most_tokens}, or build the '
                    f"engine with --most-tokens {shape[1]}"
                )
            expected = (shape[1], config.text_dim)
        else:
            remedy = f"with 1 to {config.most_tokens} tokens"
    elif len(shape) == 3 and shape[2] == config.text_dim and shape[1] != config.text_tokens:
        if tokens == "error":
            remedy = (
                'GoldenNoise(..., tokens="truncate") or tokens="average" takes longer and shorter prompts'
            )
        else:
            check_tokens(shape[1], config.text_tokens, tokens)
            expected = (shape[1], config.text_dim)
    _check_shape("prompt_embeds", shape, expected, ("batch", "tokens", "width"), remedy)
    if batch % shape[0]:
        raise InputError(
            f"prompt_embeds: expected 1 prompt, {batch} prompts or a divisor of {batch} for {batch} noises, "
            f"given {shape[0]}"
        )


def _check_bounds(size: tuple[int, ...], config: AnySizeConfig) -> None:
    least, most = config.least_side, config.most_side
    if not all(least <= side <= most for side in size):
        raise InputError(
            f"noise: expected sides of {least} to {most}, which this engine was built for, given "
            f"{size[0]} x {size[1]}; build one with --most-side {max(*size, most)} "
            f"--least-side {min(*size, least)}"
        )


def _check_shape(
    name: str, given: tuple[int, ...], shape: tuple[int, ...], axes: tuple[str, ...], remedy: str
) -> None:
    if len(given) == len(axes) and given[0] == 0:
        raise InputError(f"{name}: expected a batch of at least 1, given an empty one, {tuple(given)}")
    if len(given) != len(axes) or given[1:] != shape:
        wanted = f"({', '.join(map(str, ('batch', *shape)))})"
        raise InputError(
            f"{name}: expected shape {wanted} = ({', '.join(axes)}), given {tuple(given)}; {remedy}"
        )


def check_tensor(name: str, tensor: object) -> None:
    """Check that an argument is a dense tensor.

    Raises:
        InputError: it is not.
    """
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name}: expected a torch.Tensor, given {type(tensor).__name__}")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "a nested one" if tensor.is_nested else f"one of layout {tensor.layout}"
        raise InputError(f"{name}: expected a dense tensor, given {kind}; call .to_dense() or stack it")


def _check_kind(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.dtype not in DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise InputError(f"{name}: expected a dtype of {expected}, given {tensor.dtype}")
    if tensor.device != device:
        other = f", or pass device={str(tensor.device)!r} to GoldenNoise"
        raise InputError(
            f"{name}: expected a tensor on {device}, where the engine is, given one on {tensor.device}; "
            f"move it with .to({str(device)!r}){other if tensor.device.type in DEVICES else ''}"
        )

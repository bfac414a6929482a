"""Checks of noise and prompt embeddings, before anything is computed from them."""

from __future__ import annotations

import torch
from torch import Tensor

from npnet_runtime.config import NPNetConfig
from npnet_runtime.errors import InputError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_noise(noise: Tensor, config: NPNetConfig, device: torch.device) -> None:
    """Check a batch of initial noise.

    Raises:
        InputError: no tensor of shape (B, C, H, W), B >= 1, of a real floating dtype on the engine's
            device, or with a value that is not finite.
    """
    _check_tensor("noise", noise)
    check_noise_shape(tuple(noise.shape), config)
    _check_values("noise", noise, device)


def check_prompt_embeds(prompt_embeds: Tensor, batch: int, config: NPNetConfig, device: torch.device) -> None:
    """Check the prompt embeddings for a batch of noise.

    Args:
        prompt_embeds: one prompt, one per noise, or one per run of n noises (n images per prompt).
        batch: number of noises.
        config: shapes of the network.
        device: of the engine.

    Raises:
        InputError: no tensor of shape (P, tokens, width) with P dividing the batch, of a real floating
            dtype on the engine's device, or with a value that is not finite.
    """
    _check_tensor("prompt_embeds", prompt_embeds)
    check_prompt_shape(tuple(prompt_embeds.shape), batch, config)
    _check_values("prompt_embeds", prompt_embeds, device)


def check_noise_shape(shape: tuple[int, ...], config: NPNetConfig) -> None:
    """Check the shape of a batch of noise.

    Raises:
        InputError: it is not (B, C, H, W) with B >= 1.
    """
    _check_shape("noise", shape, config.latent_shape, ("batch", "C", "H", "W"))


def check_prompt_shape(shape: tuple[int, ...], batch: int, config: NPNetConfig) -> None:
    """Check the shape of the prompt embeddings for a batch of noise.

    Raises:
        InputError: it is not (P, tokens, width) with P dividing the batch.
    """
    _check_shape("prompt_embeds", shape, config.text_shape, ("batch", "tokens", "width"))
    if batch % shape[0]:
        raise InputError(
            f"prompt_embeds: expected 1 prompt, {batch} prompts or a divisor of {batch} for {batch} noises, "
            f"given {shape[0]}"
        )


def _check_shape(name: str, given: tuple[int, ...], shape: tuple[int, ...], axes: tuple[str, ...]) -> None:
    if len(given) != len(axes) or given[1:] != shape:
        wanted = f"({', '.join(map(str, ('batch', *shape)))})"
        raise InputError(
            f"{name}: expected shape {wanted} = ({', '.join(axes)}), given {given}; "
            f"this engine was built for that shape only"
        )
    if given[0] == 0:
        raise InputError(f"{name}: expected a batch of at least 1, given an empty one")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name}: expected a torch.Tensor, given {type(tensor).__name__}")


def _check_values(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.dtype not in DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise InputError(f"{name}: expected a dtype of {expected}, given {tensor.dtype}")
    if tensor.device != device:
        raise InputError(
            f"{name}: expected a tensor on {device}, where the engine is, given one on {tensor.device}; "
            f"move it with .to({str(device)!r}), or pass device={str(tensor.device)!r} to GoldenNoise"
        )
    finite = tensor.isfinite()
    if not finite.all():
        bad = tensor.numel() - int(finite.sum())
        raise InputError(f"{name}: expected finite values, given {bad} that are NaN or infinite")

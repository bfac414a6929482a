"""Checks of noise and prompt embeddings, before anything is computed from them."""

from __future__ import annotations

import torch
from torch import Tensor

from npnet_runtime.config import NPNetConfig
from npnet_runtime.errors import InputError

DEVICES = ("cpu", "cuda")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_noise(noise: Tensor, config: NPNetConfig, device: torch.device) -> None:
    """Check a batch of initial noise.

    Raises:
        InputError: no tensor of shape (B, C, H, W), B >= 1, of a real floating dtype on the engine's
            device, or with a value that is not finite.
    """
    _check(noise, "noise", ("batch", *config.latent_shape), ("batch", "C", "H", "W"), device)


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
    _check(
        prompt_embeds, "prompt_embeds", ("batch", *config.text_shape), ("batch", "tokens", "width"), device
    )
    if batch % len(prompt_embeds):
        raise InputError(
            f"prompt_embeds: expected 1 prompt, {batch} prompts or a divisor of {batch} for {batch} noises, "
            f"given {len(prompt_embeds)}"
        )


def _check(
    tensor: Tensor, name: str, shape: tuple[str | int, ...], axes: tuple[str, ...], device: torch.device
) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name}: expected a torch.Tensor, given {type(tensor).__name__}")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "a nested one" if tensor.is_nested else f"one of layout {tensor.layout}"
        raise InputError(f"{name}: expected a dense tensor, given {kind}; call .to_dense() or stack it")
    wanted = f"({', '.join(map(str, shape))})"
    if tensor.ndim != len(shape) or any(
        size != given for size, given in zip(shape[1:], tensor.shape[1:], strict=True)
    ):
        raise InputError(
            f"{name}: expected shape {wanted} = ({', '.join(axes)}), given {tuple(tensor.shape)}; "
            f"this engine was built for that shape only"
        )
    if tensor.shape[0] == 0:
        raise InputError(f"{name}: expected a batch of at least 1, given an empty one")
    if tensor.dtype not in DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise InputError(f"{name}: expected a dtype of {expected}, given {tensor.dtype}")
    if tensor.device != device:
        other = f", or pass device={str(tensor.device)!r} to GoldenNoise"
        raise InputError(
            f"{name}: expected a tensor on {device}, where the engine is, given one on {tensor.device}; "
            f"move it with .to({str(device)!r}){other if tensor.device.type in DEVICES else ''}"
        )
    finite = tensor.float().isfinite()  # float64 may overflow on the way
    if not finite.all():
        bad = tensor.numel() - int(finite.sum())
        raise InputError(
            f"{name}: expected finite values, given {bad} that are NaN, infinite or too large for float32"
        )

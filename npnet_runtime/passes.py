"""From noise and prompt to golden noise on a back end: what each kind of network does, and in which order."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from npnet_kernels import (
    SIGN_RULE,
    KernelError,
    choose_solver,
    combine,
    latent_to_matrix,
    spectral_correction,
    svd,
)
from npnet_kernels.backends import Backend as Kernels
from npnet_runtime.backends.base import Backend
from npnet_runtime.config import NPNetConfig
from npnet_runtime.errors import InputError
from npnet_runtime.graphs import NETWORK, PROMPT_HALF, SPECTRAL_HEAD
from npnet_runtime.manifest import Manifest

# What a manifest records -> what `svd` takes.
SIGNS: dict[str, Literal["canonical", "as-is"]] = {SIGN_RULE: "canonical", "as-is": "as-is"}


class Pass(Protocol):
    """A kind of network on a back end. All tensors are float32 and of the network's own sizes."""

    def before_prompt(self, noise: Tensor) -> Tensor | None:
        """What can be computed of noise (B, C, H, W) before the prompt is known; None if there is nothing."""

    def golden(self, early: Tensor | None, noise: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Golden noise (B, C, H, W) from `before_prompt`'s result, the noise, and (B, tokens, width)."""

    def describe(self, device: torch.device) -> list[str]:
        """Lines for `GoldenNoise.report`."""


class NPNetPass:
    """Spectral half before the prompt, prompt half, and their sum; see `npnet_runtime.network`."""

    def __init__(self, backend: Backend, manifest: Manifest, kernels: Kernels) -> None:
        self._backend, self._manifest, self._kernels = backend, manifest, kernels
        self._mixing: Any = {"text_weight": manifest.text_weight, "residual_weight": manifest.residual_weight}

    def before_prompt(self, noise: Tensor) -> Tensor:
        """The spectral half.

        Raises:
            InputError: the decomposition did not converge.
        """
        try:
            factors = svd(latent_to_matrix(noise), signs=SIGNS[str(self._manifest.signs)])
        except KernelError as error:
            raise InputError(f"noise: no singular value decomposition: {error}") from error
        (f,) = run_in_chunks(self._backend, SPECTRAL_HEAD, self._manifest.max_batch, *factors)
        return spectral_correction(noise, factors.u, f, factors.vh, backend=self._kernels)

    def golden(self, early: Tensor | None, noise: Tensor, prompt_embeds: Tensor) -> Tensor:
        """See `Pass`."""
        spectral = self.before_prompt(noise) if early is None else early
        inputs = noise, prompt_embeds
        scale_shift, residual = run_in_chunks(self._backend, PROMPT_HALF, self._manifest.max_batch, *inputs)
        return combine(spectral, noise, scale_shift, residual, **self._mixing, backend=self._kernels)

    def describe(self, device: torch.device) -> list[str]:
        """Which SVD runs, and why."""
        config = self._manifest.config
        matrix = config.matrix_shape if isinstance(config, NPNetConfig) else ()
        return [str(choose_solver(torch.empty(1, *matrix, device=device)))]


class PromptAttentionPass:
    """One graph, from noise and prompt; nothing can be done before the prompt is known."""

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        self._backend, self._manifest = backend, manifest

    def before_prompt(self, noise: Tensor) -> Tensor | None:
        """Nothing."""
        return None

    def golden(self, early: Tensor | None, noise: Tensor, prompt_embeds: Tensor) -> Tensor:
        """See `Pass`."""
        (golden,) = run_in_chunks(self._backend, NETWORK, self._manifest.max_batch, noise, prompt_embeds)
        return golden

    def describe(self, device: torch.device) -> list[str]:
        """Nothing to choose."""
        return []


def make_pass(backend: Backend, manifest: Manifest, kernels: Kernels) -> Pass:
    """The pass for the kind of network in a bundle."""
    if isinstance(manifest.config, NPNetConfig):
        return NPNetPass(backend, manifest, kernels)
    return PromptAttentionPass(backend, manifest)


def run_in_chunks(backend: Backend, graph: str, max_batch: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Run a graph on batches of at most `max_batch`, the largest that an engine takes."""
    count = math.ceil(len(inputs[0]) / max_batch)
    if count == 1:
        return backend.run(graph, *inputs)
    cut = [slice(i * max_batch, (i + 1) * max_batch) for i in range(count)]
    parts = [backend.run(graph, *(tensor[rows] for tensor in inputs)) for rows in cut]
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

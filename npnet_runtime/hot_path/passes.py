"""From noise and prompt to golden noise on a back end: what each kind of network does, and in which order."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from npnet_kernels import (
    SIGN_RULE,
    SVD,
    KernelError,
    choose_solver,
    combine_with_peak,
    latent_to_matrix,
    matrix_to_latent,
    spectral_correction,
    svd,
)
from npnet_kernels.backends import Backend as Kernels
from npnet_kernels.backends import has_triton
from npnet_kernels.linalg.choice import Situation, Solver, choose
from npnet_kernels.linalg.matrix_polynomial import odd_polynomial
from npnet_runtime.backends.base import Backend
from npnet_runtime.bundles.manifest import Manifest
from npnet_runtime.bundles.spectral import SpectralPolynomial
from npnet_runtime.errors import InputError
from npnet_runtime.networks.fused import choose_form
from npnet_runtime.networks.graphs import NETWORK, PROMPT_HALF, SPECTRAL_HEAD
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.registry import NetworkConfig

# What a manifest records -> what `svd` takes.
SIGNS: dict[str, Literal["canonical", "as-is"]] = {SIGN_RULE: "canonical", "as-is": "as-is"}


class Pass(Protocol):
    """A kind of network on a back end. All tensors are float32 and of sizes that the network takes."""

    def before_prompt(self, noise: Tensor, solver: Solver = "auto") -> Tensor | None:
        """What can be computed of noise (B, C, H, W) before the prompt is known; None if there is nothing."""

    def with_prompt(self, noise: Tensor, *texts: Tensor) -> tuple[Tensor, ...]:
        """What needs the prompt, as the graph reads it, and not `before_prompt`, which may run beside it."""

    def finish(self, early: Tensor | None, noise: Tensor, *prompted: Tensor) -> tuple[Tensor, Tensor]:
        """Golden noise (B, C, H, W) from the results of both; and (B,) its largest magnitudes, or NaN."""

    def describe(self, device: torch.device) -> list[str]:
        """Lines for `GoldenNoise.report`."""


class NPNetPass:
    """Spectral half before the prompt, prompt half, and their sum; see `npnet_runtime.networks.npnet`."""

    def __init__(self, backend: Backend, manifest: Manifest, kernels: Kernels) -> None:
        self._backend, self._manifest, self._kernels = backend, manifest, kernels
        self._mixing: Any = {"text_weight": manifest.text_weight, "residual_weight": manifest.residual_weight}

    def before_prompt(self, noise: Tensor, solver: Solver = "auto") -> Tensor:
        """The spectral half.

        Raises:
            InputError: the decomposition did not converge, or the noise is not such as the polynomial was
                fitted to. On a GPU the result is NaN then: nothing waits for it.
        """
        if self._manifest.spectral is not None:
            return polynomial_half(noise, self._manifest.spectral)
        try:
            factors = svd(latent_to_matrix(noise), solver=solver, signs=SIGNS[str(self._manifest.signs)])
        except KernelError as error:
            raise InputError(f"noise: no singular value decomposition: {error}") from error
        return self.spectral_half(noise, factors)

    def spectral_half(self, noise: Tensor, factors: SVD) -> Tensor:
        """The spectral half of noise (B, C, H, W) with the factors of its matrix given."""
        (f,) = run_in_chunks(self._backend, SPECTRAL_HEAD, self._manifest.max_batch, *factors)
        return spectral_correction(noise, factors.u, f, factors.vh, backend=self._kernels)

    def with_prompt(self, noise: Tensor, *texts: Tensor) -> tuple[Tensor, ...]:
        """The prompt half: scales and shifts (B, 2C), and the compact residual (B, C, n, W)."""
        return run_in_chunks(self._backend, PROMPT_HALF, self._manifest.max_batch, noise, *texts)

    def finish(self, early: Tensor | None, noise: Tensor, *prompted: Tensor) -> tuple[Tensor, Tensor]:
        """See `Pass`."""
        spectral = self.before_prompt(noise) if early is None else early
        return combine_with_peak(spectral, noise, *prompted, **self._mixing, backend=self._kernels)

    def describe(self, device: torch.device) -> list[str]:
        """Which SVD runs, and what the prompt half is made of, each with the reason."""
        config = self._manifest.config
        if not isinstance(config, NPNetConfig):
            return []
        if self._manifest.spectral is not None:
            lines = [f"spectral half: {self._manifest.spectral}"]
        else:
            lines = [str(choose_solver(torch.empty(1, *config.matrix_shape, device=device)))]
        if self._manifest.engine == "torch":
            lines.append(f"prompt half: {choose_form(config.swin, device, self._kernels)}")
        return lines


class OneGraphPass:
    """One graph, from noise and prompt; nothing can be done before the prompt is known."""

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        self._backend, self._manifest = backend, manifest

    def before_prompt(self, noise: Tensor, solver: Solver = "auto") -> Tensor | None:
        """Nothing."""
        return None

    def with_prompt(self, noise: Tensor, *texts: Tensor) -> tuple[Tensor, ...]:
        """All of golden noise."""
        return run_in_chunks(self._backend, NETWORK, self._manifest.max_batch, noise, *texts)

    def finish(self, early: Tensor | None, noise: Tensor, *prompted: Tensor) -> tuple[Tensor, Tensor]:
        """See `Pass`."""
        (golden,) = prompted
        return golden, golden.abs().amax((1, 2, 3))

    def describe(self, device: torch.device) -> list[str]:
        """Nothing to choose."""
        return []


def make_pass(backend: Backend, manifest: Manifest, kernels: Kernels) -> Pass:
    """The pass for the kind of network in a bundle."""
    if isinstance(manifest.config, NPNetConfig):
        return NPNetPass(backend, manifest, kernels)
    return OneGraphPass(backend, manifest)


def polynomial_half(noise: Tensor, spectral: SpectralPolynomial) -> Tensor:
    """The spectral half (B, C, H, W) by a polynomial.

    Raises:
        InputError: on a CPU, the norms of the noise are not those of white noise of unit variance. On a GPU
            the result is NaN then, as no host can look at it within a graph.
    """
    correction, norms = odd_polynomial(latent_to_matrix(noise), spectral.coefficients, spectral.bound)
    low, high = zip(spectral.frobenius, spectral.schatten8, strict=True)
    # filled, not copied from the host: a graph captures it
    fits = (norms[:, 0] >= low[0]) & (norms[:, 0] <= high[0])
    fits &= (norms[:, 1] >= low[1]) & (norms[:, 1] <= high[1])
    if not noise.is_cuda and not fits.all():
        row = int((~fits).nonzero()[0])
        raise InputError(
            f"noise: expected white noise of unit variance, as the bundle's polynomial was fitted to it "
            f"(norms {low[0]:.4g}-{high[0]:.4g} and {low[1]:.4g}-{high[1]:.4g}); given "
            f"{norms[row, 0]:.4g} and {norms[row, 1]:.4g} in row {row}; for other noise export the engine "
            f"with --spectral exact"
        )
    half = noise + matrix_to_latent(correction, noise.shape[1])
    return half.masked_fill(~fits[:, None, None, None], torch.nan)


def capture_obstacle(config: NetworkConfig, spectral: SpectralPolynomial | None = None) -> str | None:
    """Why a CUDA graph cannot hold what a pass does beside the engine's graphs; None if it can."""
    if not isinstance(config, NPNetConfig) or spectral is not None:
        return None
    rows, columns = config.matrix_shape
    try:
        choose(Situation(rows, columns, cuda=True, capturing=True, has_triton=has_triton()))
    except KernelError as error:
        return f"svd: {error}"
    return None


def run_in_chunks(backend: Backend, graph: str, max_batch: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Run a graph on batches of at most `max_batch`, the largest that an engine takes."""
    count = math.ceil(len(inputs[0]) / max_batch)
    if count == 1:
        return backend.run(graph, *inputs)
    cut = [slice(i * max_batch, (i + 1) * max_batch) for i in range(count)]
    parts = [backend.run(graph, *(tensor[rows] for tensor in inputs)) for rows in cut]
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

"""Golden noise from an engine bundle: the object a pipeline calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from npnet_kernels import (
    SIGN_RULE,
    KernelError,
    choose_backend,
    choose_solver,
    combine,
    latent_to_matrix,
    spectral_correction,
    svd,
)
from npnet_kernels.backends import Backend as Kernels
from npnet_kernels.backends import has_triton
from npnet_runtime.backends import load_backend
from npnet_runtime.bundle import EngineBundle
from npnet_runtime.errors import BackendError, BundleError, InputError
from npnet_runtime.inputs import check_noise, check_noise_shape, check_prompt_embeds, check_prompt_shape

if TYPE_CHECKING:
    from npnet_runtime.integrations.diffusers import GivenLatents

# What a manifest records -> what `svd` takes.
SIGNS: dict[str, Literal["canonical", "as-is"]] = {SIGN_RULE: "canonical", "as-is": "as-is"}


@dataclass(frozen=True, eq=False)
class PreparedNoise:
    """Noise whose spectral half is done; pass it to `GoldenNoise` in place of the noise.

    It does not depend on the prompt: prepare a seed once, use it with any prompt.

    Args:
        noise: (B, C, H, W), a copy of what was given.
        spectral: (B, C, H, W) float32, the finished spectral half.
        engine: digest of the bundle that made it.
    """

    noise: Tensor
    spectral: Tensor
    engine: str


class GoldenNoise:
    """Turns initial noise and prompt embeddings into golden noise.

    ```python
    golden = GoldenNoise("engines/sdxl")
    latents = golden(noise, prompt_embeds)
    ```

    Safe to call from several threads. Draws no random numbers and changes no global setting of torch.

    Args:
        engine: folder of an engine bundle, as `npnet-export` writes it, or an opened one.
        device: where to run; by default the current CUDA device if there is one, else the CPU.
        backend: `"auto"`, `"torch"` or `"onnxruntime"`.
        kernels: `"auto"` for the Triton kernels on CUDA, `"torch"` for their plain PyTorch references.

    Raises:
        BundleError: no bundle, or one that was changed or is unreadable.
        BackendError: no back end can run it on that device; the message says why for each.
    """

    def __init__(
        self,
        engine: str | Path | EngineBundle,
        *,
        device: str | torch.device | None = None,
        backend: str = "auto",
        kernels: Kernels = "auto",
    ) -> None:
        self.bundle = engine if isinstance(engine, EngineBundle) else EngineBundle.open(engine)
        manifest = self.bundle.manifest
        if manifest.signs not in SIGNS:
            raise BundleError(
                f"{self.bundle.path}: expected a sign rule of {', '.join(SIGNS)}, given {manifest.signs!r}; "
                f"pip install -U npnet-runtime, or write it again with: {self.bundle.rebuild_command()}"
            )
        self.device = resolve_device(device)
        self._kernels = kernels
        try:
            self._chosen_kernels = choose_backend(kernels, device=self.device.type, has_triton=has_triton())
        except KernelError as error:
            raise BackendError(f"kernels: {error}") from error
        # On a CPU the SVD keeps one core busy, the prompt half all: side by side they take 3/4 of the time.
        # `prepare` uses the same thread, and so gets the same bits.
        self._worker = ThreadPoolExecutor(thread_name_prefix="npnet") if self.device.type == "cpu" else None
        self._backend, self._candidates = load_backend(self.bundle, self.device, backend, kernels)

    def __call__(self, noise: Tensor | PreparedNoise, prompt_embeds: Tensor) -> Tensor:
        """Golden noise for a batch of noise and its prompts.

        Args:
            noise: (B, C, H, W) of unit variance, float16, bfloat16, float32 or float64, on `device`; or
                what `prepare` returned for it. Not yet multiplied by the scheduler's `init_noise_sigma`.
            prompt_embeds: (P, tokens, width) of the positive prompts, any of these dtypes. P is 1, B, or
                divides B: each prompt then serves B / P noises in a row, as in diffusers'
                `num_images_per_prompt`.

        Returns:
            (B, C, H, W) in the dtype and on the device of the noise.

        Raises:
            InputError: a shape, dtype, device or value that the engine cannot take, or noise prepared
                for another engine.
        """
        if isinstance(noise, PreparedNoise):
            self._check_prepared(noise)
            source = noise.noise
        else:
            check_noise(noise, self.bundle.manifest.config, self.device)
            source = noise
        check_prompt_embeds(prompt_embeds, len(source), self.bundle.manifest.config, self.device)
        spectral = noise if isinstance(noise, PreparedNoise) else self._start_spectral(source)
        # Made outside inference mode, so that callers may change it in place.
        golden = torch.empty_like(source, memory_format=torch.contiguous_format, requires_grad=False)
        with self._quiet():
            source = source.float().contiguous()
            repeats = len(source) // len(prompt_embeds)
            scale_shift, residual = self._prompt_half(source, prompt_embeds.repeat_interleave(repeats, dim=0))
            combined = combine(
                spectral.spectral if isinstance(spectral, PreparedNoise) else spectral(),
                source,
                scale_shift,
                residual,
                text_weight=self.bundle.manifest.text_weight,
                residual_weight=self.bundle.manifest.residual_weight,
                backend=self._kernels,
            )
            golden.copy_(combined)
        return golden

    def prepare(self, noise: Tensor) -> PreparedNoise:
        """Do the half of the work that needs no prompt: the SVD, the spectral head, the reconstruction.

        Args:
            noise: as in a call.

        Returns:
            What a call accepts in place of the noise, with the same result to the last bit.

        Raises:
            InputError: as in a call.
        """
        check_noise(noise, self.bundle.manifest.config, self.device)
        spectral = self._start_spectral(noise)()
        # a copy: the caller may go on to change theirs
        return PreparedNoise(noise.detach().clone(), spectral, self.bundle.digest)

    def attach(self, pipe: Any, *, given_latents: GivenLatents = "golden") -> None:
        """Make every call of a diffusers pipeline start from golden noise.

        See `npnet_runtime.integrations.diffusers.attach`.
        """
        from npnet_runtime.integrations import diffusers

        diffusers.attach(self, pipe, given_latents=given_latents)

    def detach(self, pipe: Any) -> None:
        """Make the pipeline what it was before `attach`.

        See `npnet_runtime.integrations.diffusers.detach`.
        """
        from npnet_runtime.integrations import diffusers

        diffusers.detach(self, pipe)

    def check_shapes(self, noise: tuple[int, ...], prompt_embeds: tuple[int, ...]) -> None:
        """Check the shapes of a call ahead of it, before the noise is even drawn.

        Raises:
            InputError: a call with noise and prompt embeddings of these shapes would be refused.
        """
        check_noise_shape(noise, self.bundle.manifest.config)
        check_prompt_shape(prompt_embeds, noise[0], self.bundle.manifest.config)

    def report(self) -> str:
        """What runs and why, and how well it agreed with the float32 network when it was built."""
        manifest = self.bundle.manifest
        lines = [
            f"{self.bundle.path}: {manifest.model}, {manifest.engine} {manifest.precision}, "
            f"batches up to {manifest.max_batch}, singular vector signs {manifest.signs}",
            *(str(candidate) for candidate in self._candidates),
            f"kernels: {self._chosen_kernels}",
            str(choose_solver(torch.empty(1, *manifest.config.matrix_shape, device=self.device))),
            *(
                f"parity when built: {row.quantity}: {row.statistic} {row.value:.2g}"
                + (f" (tolerance {row.tolerance:g})" if row.tolerance is not None else "")
                + f", {row.inputs}"
                for row in manifest.parity
            ),
        ]
        return "\n".join(lines)

    def _check_prepared(self, prepared: PreparedNoise) -> None:
        if prepared.engine != self.bundle.digest or prepared.noise.device != self.device:
            raise InputError(
                f"noise: expected noise prepared by the engine {self.bundle.path} on {self.device}, "
                f"given noise prepared by another engine or on {prepared.noise.device}; prepare it again"
            )

    def _start_spectral(self, noise: Tensor) -> Callable[[], Tensor]:
        """Begin the spectral half, beside what the caller does next; the result waits for it."""
        if self._worker is not None:
            return self._worker.submit(self._spectral_half, noise).result
        spectral = self._spectral_half(noise)
        return lambda: spectral

    def _spectral_half(self, noise: Tensor) -> Tensor:
        with self._quiet():
            noise = noise.float()
            try:
                factors = svd(latent_to_matrix(noise), signs=SIGNS[self.bundle.manifest.signs])
            except KernelError as error:
                raise InputError(f"noise: no singular value decomposition: {error}") from error
            f = torch.cat([self._backend.spectral_head(*part) for part in self._chunks(*factors)])
            return spectral_correction(noise, factors.u, f, factors.vh, backend=self._kernels)

    def _prompt_half(self, noise: Tensor, prompt_embeds: Tensor) -> list[Tensor]:
        parts = [self._backend.prompt_half(*part) for part in self._chunks(noise, prompt_embeds.float())]
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """No gradients, and the precision of the bundle whatever the caller's autocast says."""
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            yield

    def _chunks(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        size = self.bundle.manifest.max_batch
        count = math.ceil(len(tensors[0]) / size)
        return [tuple(tensor[i * size : (i + 1) * size] for tensor in tensors) for i in range(count)]


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, with an index if it is a CUDA device; by default CUDA where there is any.

    Raises:
        BackendError: no such kind of device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise BackendError(f"device: expected cpu, cuda or cuda:N, given {device!r}") from error
    if resolved.type == "cuda" and resolved.index is None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
        return torch.device("cuda", index)
    return resolved

"""Golden noise from an engine bundle: the object a pipeline calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from npnet_kernels import KernelError, choose_backend
from npnet_kernels.backends import Backend as Kernels
from npnet_kernels.backends import has_triton
from npnet_runtime.backends import load_backend
from npnet_runtime.bundle import EngineBundle
from npnet_runtime.errors import BackendError, BundleError, InputError
from npnet_runtime.inputs import check_noise, check_noise_shape, check_prompt_embeds, check_prompt_shape
from npnet_runtime.passes import SIGNS, make_pass
from npnet_runtime.prompts import TokenPolicy, check_token_policy, fit_tokens
from npnet_runtime.resolution import (
    ResolutionPolicy,
    check_resolution_policy,
    to_native_size,
    to_network_size,
)

if TYPE_CHECKING:
    from npnet_runtime.integrations.diffusers import GivenLatents


@dataclass(frozen=True, eq=False)
class PreparedNoise:
    """Noise with the work done that needs no prompt; pass it to `GoldenNoise` in place of the noise.

    It does not depend on the prompt: prepare a seed once, use it with any prompt.

    Args:
        noise: (B, C, H, W), a copy of what was given.
        spectral: (B, *config.latent_shape) float32, the finished spectral half of an NPNet; None for another
            kind of network, which can do nothing before the prompt is known.
        engine: digest of the bundle that made it.
    """

    noise: Tensor
    spectral: Tensor | None
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
        backend: `"auto"`, or the only one to consider: `"torch"`, `"onnxruntime"`, `"aoti"`, `"tensorrt"`,
            `"tensorrt-rtx"`.
        kernels: `"auto"` for the Triton kernels on CUDA, `"torch"` for their plain PyTorch references.
        tokens: what to do with prompt embeddings of another number of tokens than the network reads:
            `"error"`, `"truncate"` or `"average"`; see `npnet_runtime.prompts`.
        resolution: what to do with noise of another size: `"error"` or `"transfer"`; see
            `npnet_runtime.resolution`.

    Raises:
        BundleError: no bundle, or one that was changed or is unreadable.
        BackendError: no back end can run it on that device; the message says why for each.
        InputError: an unknown policy for tokens or resolution.
    """

    def __init__(
        self,
        engine: str | Path | EngineBundle,
        *,
        device: str | torch.device | None = None,
        backend: str = "auto",
        kernels: Kernels = "auto",
        tokens: TokenPolicy = "error",
        resolution: ResolutionPolicy = "error",
    ) -> None:
        check_token_policy(tokens)
        check_resolution_policy(resolution)
        self._tokens = tokens
        self._resolution = resolution
        self.bundle = engine if isinstance(engine, EngineBundle) else EngineBundle.open(engine)
        manifest = self.bundle.manifest
        if manifest.signs is not None and manifest.signs not in SIGNS:
            raise BundleError(
                f"{self.bundle.path}: expected a sign rule of {', '.join(SIGNS)}, given {manifest.signs!r}; "
                f"pip install -U npnet-runtime, or write it again with: {self.bundle.rebuild_command()}"
            )
        self.device = resolve_device(device)
        self._backend_asked = backend
        self._process = os.getpid()
        self._kernels = kernels
        try:
            self._chosen_kernels = choose_backend(kernels, device=self.device.type, has_triton=has_triton())
        except KernelError as error:
            raise BackendError(f"kernels: {error}") from error
        # On a CPU the SVD keeps one core busy, the prompt half all: side by side they take 3/4 of the time.
        # `prepare` uses the same thread, and so gets the same bits.
        self._worker = ThreadPoolExecutor(thread_name_prefix="npnet") if self.device.type == "cpu" else None
        loaded, self._candidates = load_backend(self.bundle, self.device, backend, kernels)
        self._pass = make_pass(loaded, manifest, kernels)

    def __call__(self, noise: Tensor | PreparedNoise, prompt_embeds: Tensor) -> Tensor:
        """Golden noise for a batch of noise and its prompts.

        Args:
            noise: (B, C, H, W), white and of unit variance, float16, bfloat16, float32 or float64, on
                `device`; or what `prepare` returned for it. Not yet multiplied by the scheduler's
                `init_noise_sigma`.
            prompt_embeds: (P, tokens, width) of the positive prompts, any of these dtypes. P is 1, B, or
                divides B: each prompt then serves B / P noises in a row, as in diffusers'
                `num_images_per_prompt`.

        Returns:
            (B, C, H, W) in the dtype and on the device of the noise.

        Raises:
            InputError: a shape, dtype, device or value that the engine cannot take, or noise prepared
                for another engine.
        """
        self._check_process()
        if isinstance(noise, PreparedNoise):
            self._check_prepared(noise)
            source = noise.noise
        else:
            check_noise(noise, self.bundle.manifest.config, self.device, self._resolution)
            source = noise
        config = self.bundle.manifest.config
        check_prompt_embeds(prompt_embeds, len(source), config, self.device, self._tokens)
        spectral = noise if isinstance(noise, PreparedNoise) else self._start_spectral(source)
        # Made outside inference mode, so that callers may change it in place.
        golden = torch.empty_like(source, memory_format=torch.contiguous_format, requires_grad=False)
        with self._quiet():
            native = source.float().contiguous()
            noise = to_network_size(native, config)
            prompt_embeds = fit_tokens(prompt_embeds, config.text_tokens, self._tokens)
            repeats = len(noise) // len(prompt_embeds)
            embeds = prompt_embeds.repeat_interleave(repeats, dim=0).float()
            early = spectral.spectral if isinstance(spectral, PreparedNoise) else spectral()
            combined = self._pass.golden(early, noise, embeds)
            if noise is not native:
                combined = native + to_native_size(combined - noise, *native.shape[2:])
            golden.copy_(combined)
            if not golden.isfinite().all():
                raise InputError(
                    f"golden noise is not finite in {golden.dtype}: expected noise of unit variance and "
                    f"embeddings as the text encoder gives them, given values too large for the network"
                )
        return golden

    def prepare(self, noise: Tensor) -> PreparedNoise:
        """Do the work that needs no prompt: of an NPNet the SVD, the spectral head and the reconstruction.

        Args:
            noise: as in a call.

        Returns:
            What a call accepts in place of the noise, with the same result to the last bit.

        Raises:
            InputError: as in a call.
        """
        self._check_process()
        check_noise(noise, self.bundle.manifest.config, self.device, self._resolution)
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
        check_noise_shape(noise, self.bundle.manifest.config, self._resolution)
        check_prompt_shape(prompt_embeds, noise[0], self.bundle.manifest.config, self._tokens)

    def report(self) -> str:
        """What runs and why, and how well it agreed with the float32 network when it was built."""
        manifest = self.bundle.manifest
        lines = [
            f"{self.bundle.path}: {manifest.model}, {manifest.engine} {manifest.precision}, "
            f"batches up to {manifest.max_batch}"
            + (f", singular vector signs {manifest.signs}" if manifest.signs else ""),
            *(str(candidate) for candidate in self._candidates),
            f"kernels: {self._chosen_kernels}",
            *self._pass.describe(self.device),
            *([f"parity: NOT checked when built: {manifest.unverified}"] if manifest.unverified else []),
            *(
                f"parity when built: {row.quantity}: {row.statistic} {row.value:.2g}"
                + (f" (tolerance {row.tolerance:g})" if row.tolerance is not None else "")
                + f", {row.inputs}"
                for row in manifest.parity
            ),
        ]
        return "\n".join(lines)

    def _check_prepared(self, prepared: PreparedNoise) -> None:
        if prepared.engine != self.bundle.digest:
            raise InputError(
                f"noise: expected noise prepared by the engine {self.bundle.path}, given noise prepared by "
                f"another engine; prepare it again with this one"
            )
        if prepared.noise.device != self.device:
            raise InputError(
                f"noise: expected noise prepared on {self.device}, given noise prepared on "
                f"{prepared.noise.device}; prepare it again with this engine"
            )

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise BackendError(
                "this GoldenNoise was made in another process, whose threads a fork does not copy; "
                "make it after the fork, or start processes with the method 'spawn'"
            )

    def __repr__(self) -> str:
        manifest = self.bundle.manifest
        return f"<GoldenNoise {manifest.model}, {manifest.engine} {manifest.precision} on {self.device}>"

    def __reduce__(self) -> tuple[Callable[..., GoldenNoise], tuple[str, ...]]:
        # Pickled as what it was made from: the bundle is opened, and checked, again.
        path = str(self.bundle.path.absolute())
        options = (self._backend_asked, self._kernels, self._tokens, self._resolution)
        return _reopen, (path, str(self.device), *options)

    def __deepcopy__(self, memo: object) -> GoldenNoise:
        return self  # nothing in it changes, and copies of a pipeline may share an engine

    def _start_spectral(self, noise: Tensor) -> Callable[[], Tensor | None]:
        """Begin the spectral half, beside what the caller does next; the result waits for it."""
        if self._worker is not None:
            return self._worker.submit(self._spectral_half, noise).result
        spectral = self._spectral_half(noise)
        return lambda: spectral

    def _spectral_half(self, noise: Tensor) -> Tensor | None:
        with self._quiet():
            return self._pass.before_prompt(to_network_size(noise.float(), self.bundle.manifest.config))

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """No gradients, and the precision of the bundle whatever the caller's autocast says."""
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            yield


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, with an index if it is a CUDA device; by default CUDA where there is any.

    Raises:
        BackendError: no such kind of device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BackendError(f"device: expected cpu, cuda or cuda:N, given {device!r}") from error
    if resolved.type == "cuda" and resolved.index is None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
        return torch.device("cuda", index)
    return torch.device("cpu") if resolved.type == "cpu" else resolved  # cpu:0 is cpu


def _reopen(
    path: str,
    device: str,
    backend: str,
    kernels: Kernels,
    tokens: TokenPolicy,
    resolution: ResolutionPolicy,
) -> GoldenNoise:
    return GoldenNoise(
        path, device=device, backend=backend, kernels=kernels, tokens=tokens, resolution=resolution
    )

"""Golden noise from an engine bundle: the object a pipeline calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from npnet_kernels import SIGN_RULE, combine, spectral_correction, svd, unfold
from torch import Tensor

from npnet_runtime.backends import load_backend
from npnet_runtime.bundle import EngineBundle
from npnet_runtime.errors import BundleError, InputError
from npnet_runtime.inputs import check_noise, check_prompt_embeds


# What a manifest records -> what `svd` takes.
SIGNS = {SIGN_RULE: "canonical", "as-is": "as-is"}


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
    ) -> None:
        self.bundle = engine if isinstance(engine, EngineBundle) else EngineBundle.open(engine)
        manifest = self.bundle.manifest
        if manifest.signs not in SIGNS:
            raise BundleError(
                f"{self.bundle.path}: expected a sign rule of {', '.join(SIGNS)}, given {manifest.signs!r}; "
                f"pip install -U npnet-runtime, or write it again with: {self.bundle.rebuild_command()}"
            )
        self.device = resolve_device(device)
        self._backend, self._candidates = load_backend(self.bundle, self.device, backend)

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
        golden = torch.empty_like(source, memory_format=torch.contiguous_format)
        # `golden` is made outside inference mode, so that callers may change it in place.
        with torch.inference_mode():
            prepared = noise if isinstance(noise, PreparedNoise) else self._prepare(noise)
            repeats = len(source) // len(prompt_embeds)
            golden.copy_(self._finish(prepared, prompt_embeds.repeat_interleave(repeats, dim=0)))
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
        with torch.inference_mode():
            return self._prepare(noise.clone())  # the caller may go on to change theirs

    def report(self) -> str:
        """What runs and why, and how well it agreed with the float32 network when it was built."""
        manifest = self.bundle.manifest
        lines = [
            f"{self.bundle.path}: {manifest.model}, {manifest.engine} {manifest.precision}, "
            f"batches up to {manifest.max_batch}, singular vector signs {manifest.signs}",
            *(str(candidate) for candidate in self._candidates),
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
                f"noise: expected noise prepared by the engine {self.bundle.path} on {self.device}, given "
                f"noise prepared by another engine or on {prepared.noise.device}; prepare it again with this one"
            )

    def _prepare(self, noise: Tensor) -> PreparedNoise:
        matrix = unfold(noise.float())
        factors = svd(matrix, signs=SIGNS[self.bundle.manifest.signs])
        f = torch.cat([self._backend.spectral_head(*part) for part in self._chunks(*factors)])
        spectral = spectral_correction(noise.float(), factors.u, f, factors.vh)
        return PreparedNoise(noise, spectral, self.bundle.digest)

    def _finish(self, prepared: PreparedNoise, prompt_embeds: Tensor) -> Tensor:
        manifest = self.bundle.manifest
        noise = prepared.noise.float().contiguous()
        parts = [self._backend.prompt_half(*part) for part in self._chunks(noise, prompt_embeds.float())]
        scale_shift, residual = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return combine(
            prepared.spectral, noise, scale_shift, residual, manifest.text_weight, manifest.residual_weight
        )

    def _chunks(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        size = self.bundle.manifest.max_batch
        count = math.ceil(len(tensors[0]) / size)
        return [tuple(tensor[i * size : (i + 1) * size] for tensor in tensors) for i in range(count)]


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, with an index if it is a CUDA device; by default CUDA where there is any."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    resolved = torch.device(device)
    if resolved.type == "cuda" and resolved.index is None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
        return torch.device("cuda", index)
    return resolved

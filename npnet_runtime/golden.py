"""Golden noise from an engine bundle: the object a pipeline calls."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from npnet_kernels import KernelError
from npnet_kernels.backends import Backend as Kernels
from npnet_kernels.backends import choose_here
from npnet_runtime.backends import load_backend
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.devices import device_errors, resolve_device
from npnet_runtime.errors import BackendError, BundleError, InputError
from npnet_runtime.golden_statistics import collapse_of
from npnet_runtime.hot_path import GraphPath, HostPath, StreamPath, choose_graphs
from npnet_runtime.hot_path import Path as HotPath
from npnet_runtime.hot_path.caches import Cache, content_key
from npnet_runtime.hot_path.passes import SIGNS, capture_obstacle, make_pass
from npnet_runtime.hot_path.prepared import PreparedNoise
from npnet_runtime.hot_path.static import buckets
from npnet_runtime.inputs.checks import (
    check_finite,
    check_noise,
    check_noise_shape,
)
from npnet_runtime.inputs.prompts import TokenPolicy, check_token_policy
from npnet_runtime.inputs.resolution import (
    ResolutionPolicy,
    check_resolution_policy,
    network_size,
    to_native_size,
    to_network_size,
)
from npnet_runtime.inputs.strength import check_strength, mix
from npnet_runtime.inputs.texts import Prompt, as_prompt, check_prompt, random_inputs, texts_of
from npnet_runtime.own_text import OwnTexts


class GoldenNoise:
    """Turns initial noise and prompt embeddings into golden noise.

    ```python
    golden = GoldenNoise("engines/sdxl")
    latents = golden(noise, prompt_embeds)
    ```

    Safe to call from several threads. Draws no random numbers and changes no global setting of torch.

    Args:
        engine: folder of an engine bundle, as `npnet-export` writes it; `owner/repository` of one on the
            hub; or an opened one.
        device: where to run; by default the current CUDA device if there is one, else the CPU.
        backend: `"auto"`, or the only one to consider: `"torch"`, `"onnxruntime"`, `"openvino"`, `"aoti"`,
            `"tensorrt"`, `"tensorrt-rtx"`.
        kernels: `"auto"` for the Triton kernels on CUDA, `"torch"` for their plain PyTorch references.
        tokens: what to do with prompt embeddings of another number of tokens than the network reads:
            `"error"`, `"truncate"` or `"average"`; see `npnet_runtime.inputs.prompts`.
        resolution: what to do with noise of another size: `"error"` or `"transfer"`; see
            `npnet_runtime.inputs.resolution`.
        strength: how golden: from 0, the noise as it was, to 1; see `npnet_runtime.inputs.strength`.
        cuda_graphs: on CUDA, replay calls from CUDA graphs, captured when a size of batch is first met:
            True for graphs or an error, False for none, None for graphs wherever the engine allows them.
            `report()` says which, and why.
        cache_size: how many prepared noises to keep; see `prepare`.
        threads: of ONNX Runtime and OpenVINO on a CPU; by default what the environment variable
            `NPNET_THREADS` says, else as many as PyTorch uses, and never more than the cores this process
            may use. Other engines use PyTorch's own threads.
        revision: branch, tag or commit of a repository.
        trust_code: load machine code (AOTInductor, TensorRT) from a repository, of a `revision` that is a
            commit; see `npnet_runtime.bundles.remote`.
        text_encoder: where the text encoder is that the network has of its own, if not where its bundle
            says: a folder or a repository; see `encode`.

    Raises:
        BundleError: no bundle, or one that was changed or is unreadable, or machine code that is not trusted.
        DownloadError: no such repository, or the hub cannot be reached.
        BackendError: no back end can run it on that device, and the message says why for each; or CUDA graphs
            were asked for that cannot be had.
        InputError: an unknown policy for tokens or resolution, no strength, or no size of a cache.
    """

    @device_errors()
    def __init__(
        self,
        engine: str | Path | EngineBundle,
        *,
        device: str | torch.device | None = None,
        backend: str = "auto",
        kernels: Kernels = "auto",
        tokens: TokenPolicy = "error",
        resolution: ResolutionPolicy = "error",
        strength: float = 1.0,
        cuda_graphs: bool | None = None,
        cache_size: int = 0,
        threads: int | None = None,
        revision: str | None = None,
        trust_code: bool = False,
        text_encoder: str | None = None,
    ) -> None:
        check_token_policy(tokens)
        check_resolution_policy(resolution)
        self._tokens = tokens
        self._resolution = resolution
        self._strength = check_strength(strength)
        self._cuda_graphs = cuda_graphs
        self._cache: Cache[PreparedNoise] = Cache(cache_size)
        if not isinstance(engine, EngineBundle):
            engine = EngineBundle.open(engine, revision=revision, trust_code=trust_code)
        self.bundle = engine
        manifest = self.bundle.manifest
        if manifest.signs is not None and manifest.signs not in SIGNS:
            raise BundleError(
                f"{self.bundle.path}: expected a sign rule of {', '.join(SIGNS)}, given {manifest.signs!r}; "
                f"pip install -U npnet-runtime, or write it again with: {self.bundle.rebuild_command()}"
            )
        self.device = resolve_device(device)
        self._backend_asked = backend
        self._texts = OwnTexts(manifest.text_encoder, self.device, text_encoder)
        self._process = os.getpid()
        self._kernels, self._threads = kernels, threads
        try:
            self._chosen_kernels = choose_here(kernels, self.device)
        except KernelError as error:
            raise BackendError(f"kernels: {error}") from error
        loaded, self._candidates = load_backend(self.bundle, self.device, backend, kernels, threads)
        self._pass = make_pass(loaded, manifest, kernels)
        config = manifest.config
        obstacles = (loaded.capture_obstacle, capture_obstacle(config, manifest.spectral))
        self._graphs = choose_graphs(cuda_graphs, self.device.type, obstacles)
        self._path: HotPath
        if self.device.type == "cpu":
            self._path = HostPath(self._pass)
        else:
            self._path = direct = StreamPath(self._pass, self.device)
            if self._graphs.captured:
                self._path = GraphPath(
                    lambda: make_pass(loaded.for_capture(), manifest, kernels),
                    direct,
                    config,
                    self.device,
                    manifest.max_batch,
                )

    @device_errors()
    def __call__(
        self,
        noise: Tensor | PreparedNoise,
        prompt_embeds: Tensor | Sequence[Tensor] | Prompt,
        *,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
        second_embeds: Tensor | None = None,
        second_mask: Tensor | None = None,
        strength: float | None = None,
    ) -> Tensor:
        """Golden noise for a batch of noise and its prompts.

        Args:
            noise: (B, C, H, W), white and of unit variance, float16, bfloat16, float32 or float64, on
                `device`; or what `prepare` returned for it. Not yet multiplied by the scheduler's
                `init_noise_sigma`.
            prompt_embeds: (P, tokens, width) of the positive prompts, any of these dtypes. P is 1, B, or
                divides B: each prompt then serves B / P noises in a row, as in diffusers'
                `num_images_per_prompt`. For a network of any size also a list of (tokens, width).
            mask: (P, tokens), nonzero for a token and 0 for none. Like the rest only of a network of any
                size; all are tokens if left out.
            pooled: (P, width), of a network that reads it.
            second_embeds: (P, tokens, width) of a second text encoder, of a network that reads it.
            second_mask: as `mask`, of those.
            strength: how golden, from 0 to 1, in this call; None for the strength of this object.

        Returns:
            (B, C, H, W) in the dtype and on the device of the noise.

        Raises:
            InputError: a shape, dtype, device or value that the engine cannot take, or noise prepared
                for another engine.
            BackendError: too little memory, CUDA refused, or no CUDA graph could be captured.
        """
        self._check_process()
        prepared = noise if isinstance(noise, PreparedNoise) else None
        source = noise.noise if isinstance(noise, PreparedNoise) else noise
        amount = self._strength if strength is None else check_strength(strength)
        prompt = as_prompt(prompt_embeds, mask, pooled, second_embeds, second_mask)
        self._check_call(source, prompt, prepared)
        if amount == 0:
            return source.detach().clone(memory_format=torch.contiguous_format)
        if prepared is None and self._cache.size and source.device.type == "cpu":
            prepared = self._prepare(source, None)
        early = None if prepared is None else prepared.early
        # Made outside inference mode, so that callers may change it in place.
        golden = torch.empty_like(source, memory_format=torch.contiguous_format, requires_grad=False)
        config = self.bundle.manifest.config
        with self._quiet():
            texts = texts_of(prompt, len(source), config, source.shape[2:], self._tokens)
            if self._write(golden, source, lambda own, out: self._path.golden(own, early, texts, out)):
                return self._mixed(source, golden, amount)
            # On CUDA the inputs were not looked at before: that makes the host wait, once for each.
            check_finite("noise", source)
            for name, tensor in prompt.given.items():
                check_finite(name, tensor)
            if self._write(golden, source, lambda own, out: self._path.again(own, texts, out)):
                return self._mixed(source, golden, amount)
        raise InputError(
            f"golden noise is not finite in {golden.dtype}: expected noise of unit variance and "
            f"embeddings as the text encoder gives them, given values too large for the network"
        )

    @device_errors()
    def prepare(self, noise: Tensor, *, key: Hashable | None = None) -> PreparedNoise:
        """Do the work that needs no prompt: of an NPNet the SVD, the spectral head and the reconstruction.

        On CUDA it runs on a stream of its own, beside what is queued next; with CUDA graphs the host does
        not wait for it either, so that noise that is not finite is first refused by the call that uses it.

        With a `cache_size` noise that was prepared before is found again. On a CPU the noise itself is
        compared, in calls as well. Doing so on CUDA would make the host wait, so a `key` has to be given.

        Args:
            noise: as in a call.
            key: names the noise, on CUDA: the same key must always come with the same noise, for instance
                the seed. Ignored without a cache, and on a CPU.

        Returns:
            What a call accepts in place of the noise, with the same result to the last bit.

        Raises:
            InputError: as in a call.
            BackendError: as in a call.
        """
        self._check_process()
        finite = self.device.type == "cpu"
        check_noise(noise, self.bundle.manifest.config, self.device, self._resolution, finite=finite)
        return self._prepare(noise, key)

    @device_errors()
    def warm_up(
        self,
        *,
        batches: Sequence[int] | None = None,
        callers: int = 1,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Do ahead what the first calls would: compile kernels, capture a CUDA graph for each size of batch.

        A server calls it once before it takes requests: the first call of a size otherwise takes seconds, and
        while one is captured, other threads may not free or pin memory of CUDA's; on torch before 2.13 not
        even draw random numbers.

        Args:
            batches: sizes to expect; all that the engine has buffers for if left out.
            callers: threads that will call at once, each of which gets graphs of its own, up to 4.
            sizes: H and W of noise to expect, where the engine takes several; its own if left out.

        Raises:
            InputError: a number that is not positive, or a size that the engine does not take.
            BackendError: as in a call.
        """
        self._check_process()
        manifest = self.bundle.manifest
        rows = buckets(manifest.max_batch) if batches is None else sorted({*batches})
        for number in (callers, *rows):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise InputError(
                    f"warm_up: expected positive numbers of rows and callers, given {batches} and {callers}"
                )
        for size in [manifest.config.latent_shape[1:]] if sizes is None else sizes:
            noise, prompt = random_inputs(manifest.config, [0], self.device, size)
            check_noise_shape(tuple(noise.shape), manifest.config, self._resolution)
            own = (noise.shape[1], *network_size(size, manifest.config))
            with self._quiet():
                texts = texts_of(prompt, 1, manifest.config, size, self._tokens)
                self._path.warm_up(rows, callers, (own, *(tuple(text.shape[1:]) for text in texts)))
            for batch in rows:
                noise, prompt = random_inputs(manifest.config, range(batch), self.device, size)
                self(self.prepare(noise), prompt)
                self(noise, prompt)

    def encode(self, prompts: Sequence[str]) -> Prompt:
        """Prompts by the text encoder that the network has of its own, loaded at the first call.

        An attached pipeline does it by itself.

        Args:
            prompts: P of them; longer ones than the encoder reads are cut.

        Raises:
            InputError: the network reads what the pipeline encodes; or the encoder is not there, or is
                another one than the network was trained with.
            DownloadError: the hub cannot be reached.
        """
        return self._texts.encode(prompts)

    def using(
        self,
        *,
        tokens: TokenPolicy | None = None,
        resolution: ResolutionPolicy | None = None,
        strength: float | None = None,
    ) -> GoldenNoise:
        """The same engine, which is not loaded again, with other policies; those left out stay.

        Raises:
            InputError: an unknown policy, or no strength.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        if tokens is not None:
            check_token_policy(tokens)
            other._tokens = tokens
        if resolution is not None:
            check_resolution_policy(resolution)
            other._resolution = resolution
        if strength is not None:
            other._strength = check_strength(strength)
        return other

    def shares_engine(self, other: object) -> bool:
        """Whether both are one loaded engine, as `using` leaves them."""
        return isinstance(other, GoldenNoise) and other._path is self._path

    def attach(
        self,
        pipe: Any,
        *,
        given_latents: Literal["golden", "as-is"] = "golden",
        strength: float | None = None,
    ) -> None:
        """Make every call of a diffusers pipeline start from golden noise.

        Args:
            pipe: the pipeline.
            given_latents: what becomes of noise that a caller passes as `latents`.
            strength: how golden, in this pipeline; None for the strength of this object.

        See `npnet_runtime.integrations.diffusers.attach`.
        """
        from npnet_runtime.integrations import diffusers

        golden = self if strength is None else self.using(strength=strength)
        diffusers.attach(golden, pipe, given_latents=given_latents)

    def detach(self, pipe: Any) -> None:
        """Make the pipeline what it was before `attach`.

        See `npnet_runtime.integrations.diffusers.detach`.
        """
        from npnet_runtime.integrations import diffusers

        diffusers.detach(self, pipe)

    def check_shapes(self, noise: tuple[int, ...], prompt_embeds: Tensor | Sequence[Tensor] | Prompt) -> None:
        """Check a call ahead of it, before the noise is even drawn.

        Args:
            noise: its shape.
            prompt_embeds: as in a call; their values are not looked at.

        Raises:
            InputError: a call with noise of this shape and this prompt would be refused.
        """
        config = self.bundle.manifest.config
        check_noise_shape(noise, config, self._resolution)
        check_prompt(as_prompt(prompt_embeds), noise[0], config, self.device, self._tokens, finite=False)

    @property
    def digest(self) -> str:
        """Of the engine and all its files."""
        return self.bundle.digest

    @property
    def captured(self) -> bool:
        """Whether calls are replayed from CUDA graphs; `report()` says why."""
        return self._graphs.captured

    def report(self) -> str:
        """What runs and why, and how well it agreed with the float32 network when it was built."""
        manifest = self.bundle.manifest
        lines = [
            f"{self.bundle.path}: {manifest.model}, {manifest.engine} {manifest.precision}, "
            f"batches up to {manifest.max_batch}"
            + (f", singular vector signs {manifest.signs}" if manifest.signs else ""),
            *([f"from {self.bundle.origin}"] if self.bundle.origin else []),
            *(str(candidate) for candidate in self._candidates),
            f"kernels: {self._chosen_kernels}",
            *([f"strength: {self._strength:g}"] if self._strength != 1 else []),
            *self._pass.describe(self.device),
            str(self._graphs),
            *self._path.describe(),
            str(self._cache),
            *_looks(manifest.statistics),
            *self._texts.describe(),
            *([f"parity: NOT checked when built: {manifest.unverified}"] if manifest.unverified else []),
            *(
                f"parity when built: {row.quantity}: {row.statistic} {row.value:.2g}"
                + (f" (tolerance {row.tolerance:g})" if row.tolerance is not None else "")
                + f", {row.inputs}"
                for row in manifest.parity
            ),
        ]
        return "\n".join(lines)

    def _check_call(self, source: Tensor, prompt: Prompt, prepared: PreparedNoise | None) -> None:
        """The checks of a call. On CUDA they look at no values, which would make the host wait."""
        config, finite = self.bundle.manifest.config, self.device.type == "cpu"
        if prepared is None:
            check_noise(source, config, self.device, self._resolution, finite=finite)
        else:
            self._check_prepared(prepared)
        check_prompt(prompt, len(source), config, self.device, self._tokens, finite=finite)

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
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise BackendError(
                "golden noise is checked by the host, which a CUDA graph that is being captured does not "
                "allow; call it before the capture"
            )

    def __repr__(self) -> str:
        manifest = self.bundle.manifest
        return f"<GoldenNoise {manifest.model}, {manifest.engine} {manifest.precision} on {self.device}>"

    def __reduce__(self) -> tuple[Callable[..., GoldenNoise], tuple[object, ...]]:
        # Pickled as what it was made from: the bundle is opened, and checked, again.
        path = str(self.bundle.path.absolute())
        options = {
            "device": str(self.device),
            "backend": self._backend_asked,
            "kernels": self._kernels,
            "tokens": self._tokens,
            "resolution": self._resolution,
            "strength": self._strength,
            "cuda_graphs": self._cuda_graphs,
            "cache_size": self._cache.size,
            "threads": self._threads,
            "text_encoder": self._texts.elsewhere,
        }
        return _reopen, (path, options)

    def __deepcopy__(self, memo: object) -> GoldenNoise:
        return self  # nothing in it changes what it gives, and copies of a pipeline may share an engine

    def _prepare(self, noise: Tensor, key: Hashable | None) -> PreparedNoise:
        """Prepare checked noise, or find it in the cache."""
        if self._cache.size and noise.device.type == "cpu":
            key = content_key(noise)
        elif key is not None:
            key = (key, tuple(noise.shape), noise.dtype)

        def make() -> PreparedNoise:
            copy = noise.detach().clone()  # the caller may go on to change theirs
            with self._quiet():
                config = self.bundle.manifest.config
                own = copy
                if copy.shape[2:] != network_size(copy.shape[2:], config):
                    own = to_network_size(copy.float().contiguous(), config)
                return PreparedNoise(copy, self._path.prepare(own), self.bundle.digest)

        return self._cache.get(key, make)

    def _write(self, golden: Tensor, noise: Tensor, compute: Callable[[Tensor, Tensor], bool]) -> bool:
        """Let `compute` write golden noise of the network's size from such noise; whether it is finite."""
        config = self.bundle.manifest.config
        if noise.shape[2:] == network_size(noise.shape[2:], config):
            return compute(noise, golden)
        native = noise.float().contiguous()
        own = to_network_size(native, config)
        out = torch.empty_like(own)
        finite = compute(own, out)
        height, width = native.shape[2:]
        golden.copy_(native + to_native_size(out - own, height, width, config))
        # of the native size as well: its pixels are not all in the network's
        return finite and math.isfinite(golden.abs().amax().item())  # NaN is the largest of all

    def _mixed(self, noise: Tensor, golden: Tensor, strength: float) -> Tensor:
        """Golden noise of the strength that was asked for, made outside inference mode like it."""
        if strength == 1:
            return golden
        return golden.copy_(mix(noise, golden, strength))

    def _quiet(self) -> AbstractContextManager[object]:
        """No gradients, and the precision of the bundle whatever the caller's autocast says."""
        if not torch.is_autocast_enabled(self.device.type):  # to switch off what is off costs more
            return torch.inference_mode()
        return _without_autocast(self.device.type)


@contextmanager
def _without_autocast(device: str) -> Iterator[None]:
    with torch.inference_mode(), torch.autocast(device, enabled=False):
        yield


def _reopen(path: str, options: dict[str, Any]) -> GoldenNoise:
    return GoldenNoise(path, **options)


def _looks(statistics: dict[str, float] | None) -> list[str]:
    if statistics is None:
        return []
    told = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in statistics.items())
    problems = collapse_of(statistics)
    return [f"golden noise when built: {told}", *(f"COLLAPSED: {problem}" for problem in problems)]

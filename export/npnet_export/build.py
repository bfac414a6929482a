"""From weights to a sealed bundle: load, build, check against float32 PyTorch, keep or refuse."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from npnet_export.engines import ENGINES, check_engine, float32_parts, in_precision, unverifiable
from npnet_export.errors import ExportError, ParityError
from npnet_export.parity import compare, statistics_of
from npnet_export.request import Binding, BuilderOptions, BuildRequest
from npnet_export.spectral_fit import fit
from npnet_export.weights import WeightsRequest
from npnet_kernels import SIGN_RULE
from npnet_runtime import __version__
from npnet_runtime.backends.machine import installed_version
from npnet_runtime.bundles.bundle import EngineBundle, check_target, write_bundle
from npnet_runtime.bundles.manifest import Manifest, ParityRow
from npnet_runtime.bundles.spectral import SpectralPolynomial
from npnet_runtime.devices import device_errors, resolve_device
from npnet_runtime.golden_statistics import collapse_of
from npnet_runtime.networks.npnet import NPNet
from npnet_runtime.networks.registry import Network, network_for

SIGN_RULES = {"canonical": SIGN_RULE, "as-is": "as-is"}
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class ExportSettings:
    """What to export.

    Args:
        weights: where the weights come from.
        output: folder of the bundle.
        name: of the model, for the manifest.
        engine: kind of engine, a key of `engines.ENGINES`.
        precision: of the matrix products: `fp32`, `fp16` or `bf16`.
        signs: of singular vectors: `canonical` or `as-is`.
        max_batch: largest batch of one run.
        device: where the engine is checked; None for CUDA if there is any.
        force: replace a bundle that is there.
        options: those that only some engines take.
        verify: compare it with float32 PyTorch before it is kept; without, the manifest says it was not.
        spectral: the SVD itself (`exact`), a polynomial for it, or that where it passes (`auto`).
        spectral_tolerance: of the polynomial; None for that of the precision.
        chosen: why the engine is of this kind, where `--engine auto` chose it.
        allow_collapse: also of weights whose golden noise is no longer noise.
    """

    weights: WeightsRequest
    output: Path
    name: str
    engine: str = "onnxruntime"
    precision: str = "fp32"
    signs: str = "canonical"
    max_batch: int = 8
    device: str | None = None
    force: bool = False
    options: BuilderOptions = field(default_factory=BuilderOptions)
    verify: bool = True
    spectral: str = "exact"
    spectral_tolerance: float | None = None
    chosen: str | None = None
    allow_collapse: bool = False

    def estimated_bytes(self) -> int:
        """Size of the bundle to expect, from the number of weights; 0 before their shapes are known."""
        config = self.weights.config()
        if config is None:
            return 0
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in network_for(config).parameters())
        return round(count * _BYTES[self.precision] * 1.02)


def check(settings: ExportSettings) -> None:
    """Everything that can be found wrong before the work starts.

    Raises:
        ExportError: the device does not exist, or the engine takes no such option, or cannot be compared
            with PyTorch on the device.
        BackendError: a module that builds the engine is missing.
        CheckpointError: the weights are a file that does not exist.
        BundleError: the output cannot be written.
    """
    device = resolve_device(settings.device)
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if str(device) not in devices:
        raise ExportError(f"--device: expected one of {', '.join(devices)}, given {device}")
    settings.weights.check()
    check_engine(
        settings.engine,
        settings.precision,
        settings.options,
        settings.max_batch,
        device,
        settings.verify,
        settings.weights.downloads,
    )
    check_target(settings.output, force=settings.force, need_bytes=settings.estimated_bytes())


@device_errors()
def export(settings: ExportSettings, stage: Callable[[str], None] = lambda text: None) -> EngineBundle:
    """Build an engine bundle and check it.

    Args:
        settings: what to export.
        stage: told what happens next.

    Returns:
        The bundle, in its final place.

    Raises:
        CheckpointError, DownloadError: no usable weights.
        ExportError: the engine could not be built.
        ParityError: it does not agree with the float32 network. Nothing is kept.
        BundleError: the output cannot be written.
        BackendError: too little memory.
    """
    check(settings)
    kind = ENGINES[settings.engine]
    stage(f"loading weights: {settings.weights.description}")
    network, weights, made_for = settings.weights.load()
    statistics = _statistics(settings, network, stage)
    spectral = _spectral(settings, network, stage)
    with write_bundle(settings.output, force=settings.force) as (folder, seal):
        stage(f"building the {settings.engine} engine in {settings.precision}")
        device = resolve_device(settings.device)
        request = BuildRequest(
            in_precision(network, settings.precision),
            folder,
            settings.precision,
            device,
            settings.max_batch,
            settings.options,
            stage,
        )
        manifest = _manifest(settings, network, weights, kind.write(request))
        manifest = replace(manifest, statistics=statistics, **made_for)
        if spectral is not None:
            manifest = replace(manifest, spectral=spectral, signs=None)
        if settings.verify:
            stage(f"comparing with float32 PyTorch on {device}")
            parity = compare(seal(manifest), network, device)
            _require(parity)
            manifest = replace(manifest, parity=parity)
        else:
            reason = unverifiable(
                settings.engine, settings.precision, manifest.compute_capabilities, device, settings.options
            )
            unverified = f"--no-verify ({reason or 'left out on request'})"
            stage(f"NOT compared with float32 PyTorch: {unverified}")
            manifest = replace(manifest, unverified=unverified)
        bundle = seal(manifest)
        stage("writing the bundle")
    size = sum(file.bytes for file in bundle.manifest.files.values())
    stage(f"done: {settings.output}, {size / 1e6:.1f} MB")
    return EngineBundle.open(settings.output)


def _manifest(
    settings: ExportSettings, network: Network, weights: dict[str, Any], binding: Binding
) -> Manifest:
    return Manifest(
        package_version=__version__,
        model=settings.name,
        config=network.config,
        weights=weights,
        engine=settings.engine,
        precision=settings.precision,
        float32_parts=float32_parts(network, settings.precision),
        max_batch=settings.max_batch,
        **_mixing(settings, network),
        **asdict(binding),
        build_options=settings.options.given(),
        files={},
        built_with=environment(),
        parity=(),
        unverified=None,
        reads=settings.weights.reads,
    )


def _statistics(
    settings: ExportSettings, network: Network, stage: Callable[[str], None]
) -> dict[str, float] | None:
    """What golden noise looks like; of random weights it says nothing.

    Raises:
        ExportError: it has collapsed, and that is not allowed.
    """
    if settings.weights.random_seed is not None:
        return None
    found = statistics_of(network, _mixing(settings, network)["signs"])
    problems = collapse_of(found)
    if problems and not settings.allow_collapse:
        raise ExportError(
            f"golden noise of these weights has collapsed: {'; '.join(problems)}. Train again, on pairs "
            "whose targets depend on their sources; --allow-collapse makes the engine all the same"
        )
    for problem in problems:
        stage(f"COLLAPSED: {problem}")
    return found


def _spectral(
    settings: ExportSettings, network: Network, stage: Callable[[str], None]
) -> SpectralPolynomial | None:
    if settings.spectral == "exact":
        return None
    if not isinstance(network, NPNet):
        reason = f"not applicable: a network of kind {network.config.kind} has no singular values"
        if settings.spectral == "polynomial":
            raise ExportError(f"--spectral polynomial: {reason}; use --spectral exact")
        stage(f"--spectral auto: {reason}")
        return None
    stage("fitting a polynomial to the spectral correction")
    try:
        found = fit(network, settings.precision, settings.spectral_tolerance)
    except ExportError as error:
        if settings.spectral == "polynomial":
            raise
        stage(f"--spectral auto: the SVD is kept: {error}")
        return None
    stage(f"spectral half: {found}; signs of singular vectors are not needed")
    return found


def _mixing(settings: ExportSettings, network: Network) -> dict[str, Any]:
    if not isinstance(network, NPNet):
        return {"signs": None, "text_weight": None, "residual_weight": None}
    return {
        "signs": SIGN_RULES[settings.signs],
        "text_weight": float(network.text_weight),
        "residual_weight": float(network.beta),
    }


def environment() -> dict[str, Any]:
    """Versions of everything an export uses, the operating system and, if any, the GPU."""
    packages = ("torch", "triton", "numpy", "safetensors", "onnx", "onnxscript", "onnxruntime", "openvino")
    engines = ("tensorrt", "tensorrt-rtx")
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.system()}
    found |= {name: version for name in (*packages, *engines) if (version := installed_version(name))}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found


def _require(parity: tuple[ParityRow, ...]) -> None:
    # `not <=` rather than `>`: NaN must fail
    failed = [row for row in parity if row.tolerance is not None and not row.value <= row.tolerance]
    if failed:
        lines = (
            f"{row.quantity}: {row.statistic} {row.value:.3g}, tolerance {row.tolerance:g} ({row.inputs})"
            for row in failed
        )
        raise ParityError(
            "the engine does not agree with float32 PyTorch, and was not kept; try --precision fp32:\n  "
            + "\n  ".join(lines)
        )

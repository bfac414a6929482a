"""Which back end runs a bundle: a pure function over candidates, each accepted or rejected with a reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import torch

from npnet_kernels.backends import Backend as Kernels
from npnet_runtime.backends.base import Backend
from npnet_runtime.bundle import EngineBundle
from npnet_runtime.errors import BackendError
from npnet_runtime.manifest import Manifest

BACKENDS = ("torch", "onnxruntime")
_DISTRIBUTIONS = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
_INSTALL = {
    "torch": "pip install torch",
    "onnxruntime": "pip install 'npnet-runtime[cpu]', or 'npnet-runtime[gpu]' for CUDA",
}


@dataclass(frozen=True)
class Machine:
    """What a choice depends on.

    Args:
        versions: installed version of each package that a back end needs.
        compute_capability: `"9.0"` of each CUDA device, by its index; empty without CUDA.
        onnxruntime_providers: what ONNX Runtime was built with; empty when it is not installed.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    compute_capability: tuple[str, ...] = ()
    onnxruntime_providers: tuple[str, ...] = ()

    @classmethod
    def detect(cls, engine: str) -> Machine:
        """This machine, as far as that engine is concerned: packages of others are not imported."""
        versions = {name: found for name in BACKENDS if (found := installed_version(name))}
        providers: tuple[str, ...] = ()
        if engine == "onnxruntime" and engine in versions:
            import onnxruntime

            providers = tuple(onnxruntime.get_available_providers())
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        capabilities = (torch.cuda.get_device_capability(index) for index in range(count))
        return cls(versions, tuple(f"{major}.{minor}" for major, minor in capabilities), providers)


@dataclass(frozen=True)
class Candidate:
    """A back end on a device, and why it was accepted or rejected."""

    backend: str
    device: torch.device
    accepted: bool
    reason: str

    def __str__(self) -> str:
        verdict = "accepted" if self.accepted else "rejected"
        return f"{self.backend} on {self.device}: {verdict}: {self.reason}"


def select(
    manifest: Manifest, machine: Machine, device: torch.device, backend: str = "auto"
) -> tuple[Candidate, ...]:
    """Judge every back end for a bundle on a device; at most one is accepted.

    Args:
        manifest: of the bundle.
        machine: what is installed here.
        device: where to run.
        backend: `"auto"`, or the name of the only one to consider.

    Raises:
        BackendError: `backend` is no back end.
    """
    if backend not in ("auto", *BACKENDS):
        raise BackendError(f"backend: expected auto, {' or '.join(BACKENDS)}; given {backend!r}")
    candidates = []
    for name in BACKENDS:
        obstacle = _obstacle(name, manifest, machine, device, backend)
        accepted = obstacle is None
        candidates.append(Candidate(name, device, accepted, obstacle or f"the bundle holds {name} graphs"))
    return tuple(candidates)


def load_backend(
    bundle: EngineBundle, device: torch.device, backend: str = "auto", kernels: Kernels = "auto"
) -> tuple[Backend, tuple[Candidate, ...]]:
    """Choose a back end for a bundle and start it.

    Raises:
        BackendError: none can run here; the message lists each with its reason.
        BundleError: a file of the bundle was changed or cannot be read.
    """
    candidates = select(bundle.manifest, Machine.detect(bundle.manifest.engine), device, backend)
    chosen = next((candidate for candidate in candidates if candidate.accepted), None)
    if chosen is None:
        reasons = "\n  ".join(str(candidate) for candidate in candidates)
        raise BackendError(f"no back end can run {bundle.path}:\n  {reasons}")
    if chosen.backend == "torch":
        from npnet_runtime.backends.torch_backend import TorchBackend

        return TorchBackend(bundle, device, kernels), candidates
    from npnet_runtime.backends.onnxruntime_backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, device), candidates


def installed_version(package: str) -> str | None:
    """Version of a package, or of the first of its alternative distributions, if installed."""
    for distribution in _DISTRIBUTIONS.get(package, (package,)):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def satisfies(found: str, condition: str) -> bool:
    """Whether a version meets a condition of the form `>=1.2` or `==1.2.3`."""
    operator, wanted = condition[:2], condition[2:]
    found_parts, wanted_parts = _parts(found), _parts(wanted)
    return (
        found_parts >= wanted_parts if operator == ">=" else found_parts[: len(wanted_parts)] == wanted_parts
    )


def _parts(text: str) -> list[int]:
    # "2.13.0+cpu" -> [2, 13, 0]
    return [
        int(digits.group()) for part in text.split("+")[0].split(".") if (digits := re.match(r"\d+", part))
    ]


def _obstacle(
    name: str, manifest: Manifest, machine: Machine, device: torch.device, backend: str
) -> str | None:
    if backend not in ("auto", name):
        return f"backend={backend!r} was asked for"
    if manifest.engine != name:
        return f"the bundle was built for {manifest.engine}; build one with npnet-export --engine {name}"
    for package, condition in manifest.requires.items():
        found = machine.versions.get(package)
        if found is None:
            return f"{package} is not installed: {_INSTALL.get(package, f'pip install {package}')}"
        if not satisfies(found, condition):
            return (
                f"the bundle needs {package} {condition}, {found} is installed; rebuild it or pip install -U"
            )
    if device.type == "cpu":
        if manifest.compute_capability is not None:
            return f"the bundle is bound to a GPU of compute capability {manifest.compute_capability}"
        return None
    if device.type != "cuda":
        return f"expected a device of type cpu or cuda, given {device}"
    return _cuda_obstacle(name, manifest, machine, device)


def _cuda_obstacle(name: str, manifest: Manifest, machine: Machine, device: torch.device) -> str | None:
    index = device.index or 0
    if index >= len(machine.compute_capability):
        return f"{device} does not exist here: torch sees {len(machine.compute_capability)} CUDA devices"
    capability = machine.compute_capability[index]
    if manifest.compute_capability not in (None, capability):
        return (
            f"the bundle is bound to compute capability {manifest.compute_capability}, "
            f"{device} has {capability}; rebuild it on this machine"
        )
    if name == "onnxruntime" and "CUDAExecutionProvider" not in machine.onnxruntime_providers:
        return (
            "this onnxruntime has no CUDA provider; pip uninstall onnxruntime, then "
            "pip install 'npnet-runtime[gpu]'; or run on the CPU with device='cpu'"
        )
    return None

"""Which back end runs a bundle: a pure function over candidates, each accepted or rejected with a reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from npnet_kernels.backends import Backend as Kernels
from npnet_runtime.backends.base import Backend
from npnet_runtime.backends.machine import Machine
from npnet_runtime.backends.openvino_backend import target_obstacle, target_of
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.bundles.manifest import Manifest
from npnet_runtime.errors import BackendError

BACKENDS = ("torch", "onnxruntime", "openvino", "aoti", "tensorrt", "tensorrt-rtx")
THREADED = ("onnxruntime", "openvino")
"""Back ends with threads of their own; the others compute with those of PyTorch."""
# Earlier releases leave reshapes and transposes of opset 21 on the CPU.
ONNXRUNTIME_ON_CUDA = ">=1.24.4"
_INSTALL = {
    "onnxruntime": "pip install 'npnet-runtime[cpu]', or 'npnet-runtime[gpu]' for CUDA",
    "openvino": "pip install 'npnet-runtime[openvino]'",
    "tensorrt-rtx": "pip install 'tensorrt-rtx-cu13{condition}'",
}


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
        candidates.append(Candidate(name, device, accepted, obstacle or f"the bundle is an engine of {name}"))
    return tuple(candidates)


def load_backend(
    bundle: EngineBundle,
    device: torch.device,
    backend: str = "auto",
    kernels: Kernels = "auto",
    threads: int | None = None,
) -> tuple[Backend, tuple[Candidate, ...]]:
    """Choose a back end for a bundle and start it.

    Raises:
        BackendError: none can run here; the message lists each with its reason; or threads for one whose
            threads are PyTorch's.
        BundleError: a file of the bundle was changed or cannot be read.
    """
    machine = Machine.detect(bundle.manifest.engine, bundle.manifest.requires)
    candidates = select(bundle.manifest, machine, device, backend)
    chosen = next((candidate for candidate in candidates if candidate.accepted), None)
    if chosen is None:
        reasons = "\n  ".join(str(candidate) for candidate in candidates)
        raise BackendError(
            f"no back end can run {bundle.path}:\n  {reasons}\n"
            f"to write it again for this machine: {bundle.rebuild_command()}"
        )
    if threads is not None and chosen.backend not in THREADED:
        raise BackendError(
            f"threads: {chosen.backend} computes with PyTorch's threads, one number for the process; "
            f"call torch.set_num_threads({threads}), or build with --engine {' or '.join(THREADED)}"
        )
    return _start(chosen.backend, bundle, device, kernels, threads), candidates


def _start(
    name: str, bundle: EngineBundle, device: torch.device, kernels: Kernels, threads: int | None
) -> Backend:
    # Imported here, so that a back end costs nothing where another one runs.
    if name == "torch":
        from npnet_runtime.backends.torch_backend import TorchBackend

        return TorchBackend(bundle, device, kernels)
    if name == "onnxruntime":
        from npnet_runtime.backends.onnxruntime_backend import OnnxRuntimeBackend

        return OnnxRuntimeBackend(bundle, device, threads)
    if name == "openvino":
        from npnet_runtime.backends.openvino_backend import OpenVinoBackend

        return OpenVinoBackend(bundle, device, threads)
    if name == "aoti":
        from npnet_runtime.backends.aoti_backend import AotiBackend

        return AotiBackend(bundle, device)
    from npnet_runtime.backends.tensorrt_backend import TensorRTBackend

    return TensorRTBackend(bundle, device)


def satisfies(found: str, condition: str) -> bool:
    """Whether a version meets a condition: `>=1.2`, `==1.2.3`, or `~=1.2` for that up to the next major."""
    operator, wanted = condition[:2], condition[2:]
    found_parts, wanted_parts = _parts(found), _parts(wanted)
    if operator == "==":
        return found_parts[: len(wanted_parts)] == wanted_parts
    return found_parts >= wanted_parts and (operator == ">=" or found_parts[0] == wanted_parts[0])


def runs_on(capability: str, compute_capabilities: tuple[str, ...]) -> bool:
    """Whether a GPU is among those of a manifest: `8.9`, or `8.0+` for that and all later ones."""
    return any(
        _parts(capability) >= _parts(target.rstrip("+")) if target.endswith("+") else capability == target
        for target in compute_capabilities
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
        install = _INSTALL.get(package, "pip install '{package}{condition}'").format(
            package=package, condition=condition
        )
        if found is None:
            return f"{package} is not installed: {install}"
        if not satisfies(found, condition):
            return f"the bundle needs {package} {condition}, {found} is installed; rebuild it, or {install}"
    if device.type not in ("cpu", "cuda"):
        return f"expected a device of type cpu or cuda, given {device}"
    count, index = len(machine.compute_capability), device.index or 0
    if device.type == "cuda" and index >= count:
        why = f" ({machine.cuda_problem})" if machine.cuda_problem else ""
        return f"{device} does not exist here: torch sees {count} CUDA devices{why}"
    if manifest.device not in (None, device.type):
        return f"the bundle is bound to {manifest.device}, given device={str(device)!r}; rebuild it"
    return _platform_obstacle(manifest, machine) or (
        _cpu_obstacle(manifest, machine)
        if device.type == "cpu"
        else _cuda_obstacle(name, manifest, machine, device)
    )


def _platform_obstacle(manifest: Manifest, machine: Machine) -> str | None:
    for key in ("system", "machine"):
        wanted, found = manifest.platform.get(key), machine.platform.get(key)
        if wanted not in (None, found):
            return f"the bundle is bound to {wanted}, this is {found}; rebuild it on this machine"
    wanted_features = manifest.platform.get("cpu_features", "").split()
    found_features = machine.platform.get("cpu_features", "").split()
    missing = [feature for feature in wanted_features if feature not in found_features]
    if missing:
        return (
            f"the bundle was compiled for a CPU with {', '.join(missing)}, which this one lacks; "
            f"rebuild it on this machine"
        )
    return None


def _cpu_obstacle(manifest: Manifest, machine: Machine) -> str | None:
    if manifest.compute_capabilities:
        return f"the bundle is bound to a GPU of compute capability {_list(manifest.compute_capabilities)}"
    if manifest.engine == "openvino":
        return target_obstacle(target_of(manifest), manifest.precision, machine.openvino_devices)
    return None


def _cuda_obstacle(name: str, manifest: Manifest, machine: Machine, device: torch.device) -> str | None:
    capability = machine.compute_capability[device.index or 0]
    if manifest.compute_capabilities and not runs_on(capability, manifest.compute_capabilities):
        return (
            f"the bundle is bound to compute capability {_list(manifest.compute_capabilities)}, "
            f"{device} has {capability}; rebuild it on this machine"
        )
    if name == "onnxruntime" and "CUDAExecutionProvider" not in machine.onnxruntime_providers:
        return (
            "this onnxruntime has no CUDA provider; pip uninstall onnxruntime, then "
            "pip install 'npnet-runtime[gpu]'; or run on the CPU with device='cpu'"
        )
    if name == "onnxruntime" and not satisfies(machine.versions["onnxruntime"], ONNXRUNTIME_ON_CUDA):
        return (
            f"onnxruntime {machine.versions['onnxruntime']} leaves parts of the graphs on the CPU; "
            f"pip install 'onnxruntime-gpu{ONNXRUNTIME_ON_CUDA}'"
        )
    return None


def _list(capabilities: tuple[str, ...]) -> str:
    return " or ".join(capabilities)

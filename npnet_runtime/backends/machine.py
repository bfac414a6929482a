"""What a choice of back end depends on: packages, CUDA devices, operating system, instruction set."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from npnet_runtime.backends.openvino_backend import devices as openvino_devices
from npnet_runtime.devices import cuda_problem

# The distributions that provide a package, the first one found counts.
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
PLATFORM = ("system", "machine", "cpu_features")
# Of what /proc/cpuinfo lists, what a compiler emits instructions for; the rest is about the kernel.
_INSTRUCTIONS = re.compile(
    r"abm|adx|aes|amx_\w+|avx\w*|bmi[12]|f16c|fma4?|gfni|lzcnt|movbe|pclmulqdq|popcnt|rdrand|rdseed|"
    r"sha\w*|sse\w*|ssse3|tbm|vaes|vpclmulqdq|xop"
)


@dataclass(frozen=True)
class Machine:
    """The machine that is to run a bundle.

    Args:
        versions: installed version of each package that the bundle needs.
        compute_capability: `"9.0"` of each CUDA device, by its index; empty without CUDA.
        onnxruntime_providers: what ONNX Runtime was built with; empty when it is not installed.
        openvino_devices: its devices, and what each computes in; empty when it is not installed.
        platform: value of each key of `PLATFORM`.
        cuda_problem: why torch sees no CUDA device, where it sees none.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    compute_capability: tuple[str, ...] = ()
    onnxruntime_providers: tuple[str, ...] = ()
    platform: Mapping[str, str] = field(default_factory=dict)
    openvino_devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cuda_problem: str | None = None

    @classmethod
    def detect(cls, engine: str, packages: Iterable[str] = ()) -> Machine:
        """This machine, as far as a bundle is concerned: packages of other engines are not imported.

        Args:
            engine: of the bundle.
            packages: that it requires.
        """
        versions = {name: found for name in packages if (found := installed_version(name))}
        providers: tuple[str, ...] = ()
        if engine == "onnxruntime" and engine in versions:
            import onnxruntime

            providers = tuple(onnxruntime.get_available_providers())
        intel = openvino_devices() if engine == "openvino" and engine in versions else {}
        return cls(versions, cuda_capabilities(), providers, this_platform(), intel, cuda_problem())


def cuda_capabilities() -> tuple[str, ...]:
    """Compute capability of each CUDA device that torch sees, by its index."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple("{}.{}".format(*torch.cuda.get_device_capability(index)) for index in range(count))


def this_platform() -> dict[str, str]:
    """Operating system, processor family and instruction set extensions of this machine."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_features": " ".join(_cpu_features()),
    }


def is_intel() -> bool:
    """Whether the CPU is one of Intel's."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return "GenuineIntel" in platform.processor()  # Windows: "Intel64 Family 6 ..., GenuineIntel"


def installed_version(package: str) -> str | None:
    """Version of a package, or of the first of its alternative distributions, if installed."""
    for distribution in _DISTRIBUTIONS.get(package, (package,)):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def _cpu_features() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        # Not Linux: the level that torch itself compiles for is all there is to compare.
        return [torch.backends.cpu.get_cpu_capability()]
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return sorted(word for word in set(value.split()) if _INSTRUCTIONS.fullmatch(word))
        if name.strip() == "Features":  # Arm lists instructions only
            return sorted(set(value.split()))
    return []

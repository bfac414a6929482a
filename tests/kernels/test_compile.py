"""Every kernel, compiled as it is launched, for six architectures and without a GPU.

The launch functions run on fake inputs with launching replaced by recording, so what is compiled here is
what a GPU would compile: the same argument types, the same specialisation of divisible integers, the same
block sizes.
"""

import functools
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from npnet_kernels.affine import launch as affine
from npnet_kernels.backends import interpreting
from npnet_kernels.linalg.schedule import Schedule
from npnet_kernels.reconstruction import launch as reconstruction

triton = pytest.importorskip("triton")
jacobi_launch = pytest.importorskip("npnet_kernels.linalg.jacobi_launch")
rotation_kernels = pytest.importorskip("npnet_kernels.linalg.rotation_kernels")
jacobi_kernels = pytest.importorskip("npnet_kernels.linalg.jacobi_kernels")
pytestmark = pytest.mark.skipif(interpreting(), reason="the interpreter replaces the compiler")

# Kernels launched without `launchable`, by module.
DIRECT = {
    jacobi_kernels: ("angles", "square", "polynomial", "multiply", "defect"),
    rotation_kernels: ("weighted_defect", "rotations", "worst_entry"),
}

# Shared memory that one block can have, in KiB (CUDA C++ Programming Guide, "Technical Specifications per
# Compute Capability": maximum amount of shared memory per thread block).
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class Recorder:
    """Stands in for `launchable`: remembers what would have been launched."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def __call__(self, kernel: Any) -> "Recorder._Kernel":
        return Recorder._Kernel(self, kernel)

    class _Kernel:
        def __init__(self, recorder: "Recorder", kernel: Any) -> None:
            self.recorder, self.kernel = recorder, kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*arguments: Any, **options: Any) -> None:
                self.recorder.launches.append(Launch(self.kernel, arguments, options))

            return launch


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    for module in (reconstruction, affine):
        monkeypatch.setattr(module, "launchable", recorder)
    for module, names in DIRECT.items():
        for name in names:
            monkeypatch.setattr(module, f"{name}_kernel", recorder(getattr(module, f"{name}_kernel")))
    return recorder


def compile_launch(launch: Launch, capability: int) -> Any:
    """Compile a recorded launch with the specialisation that Triton's launcher would choose."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = dict(launch.options)
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
    values.update({name: options.pop(name) for name in launch.kernel.arg_names if name in options})
    for i, parameter in enumerate(launch.kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        signature[parameter.name] = type_of(value)
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options["enable_fp_fusion"] = True  # the default differs between Triton 3.9 and 3.10
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
                      torch.int32: "i32", torch.float64: "fp64"}[value.dtype]  # fmt: skip
    if isinstance(value, float):
        return "fp32"
    return "i32" if value < 2**31 else "i64"


def distinct(launches: list[Launch]) -> list[Launch]:
    """One launch of each kernel and set of options."""
    return list({(launch.kernel.__name__, str(launch.options)): launch for launch in launches}.values())


class Usage(NamedTuple):
    registers: int
    stack: int
    local: int


def resources(cubin: bytes, folder: Path) -> Usage:
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    output = subprocess.run(
        [cuobjdump(), "--dump-resource-usage", path], capture_output=True, text=True, check=True
    )
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", output.stdout))
    return Usage(int(numbers["REG"]), int(numbers["STACK"]), int(numbers["LOCAL"]))


@functools.cache
def cuobjdump() -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def launch_spectral(dtype: torch.dtype, batch: int) -> None:
    noise, u, f, vh, _, _ = reconstruction_inputs(dtype, batch)
    reconstruction.launch_reconstruct(noise, u, f, vh, None)


def launch_whole(dtype: torch.dtype, batch: int) -> None:
    noise, u, f, vh, scale_shift, residual = reconstruction_inputs(dtype, batch)
    reconstruction.launch_reconstruct(noise, u, f, vh, (scale_shift, residual, 0.3, 0.05))


def launch_combine(dtype: torch.dtype, batch: int) -> None:
    noise, _, _, _, scale_shift, residual = reconstruction_inputs(dtype, batch)
    reconstruction.launch_combine(noise.float(), noise, scale_shift, residual, 0.3, 0.05)


def reconstruction_inputs(dtype: torch.dtype, batch: int) -> tuple[torch.Tensor, ...]:
    return (
        torch.zeros(batch, 4, 128, 128, dtype=dtype), torch.zeros(batch, 256, 256), torch.zeros(batch, 256),
        torch.zeros(batch, 256, 256), torch.zeros(batch, 8), torch.zeros(batch, 4, 7, 128),
    )  # fmt: skip


def launch_affine(dtype: torch.dtype, batch: int) -> None:
    affine.launch_text_affine(
        torch.zeros(batch, 77, 2048, dtype=dtype), torch.zeros(8, 77 * 2048), torch.zeros(8)
    )


def launch_affine_half(dtype: torch.dtype, batch: int) -> None:
    affine.launch_text_affine(
        torch.zeros(batch, 77, 2048, dtype=dtype), torch.zeros(8, 77 * 2048, dtype=dtype), torch.zeros(8)
    )


def launch_jacobi(batch: int, coarse: int) -> None:
    jacobi_launch.jacobi_vectors(torch.zeros(batch, 256, 256), Schedule(step=1.0, coarse=coarse, fine=1))


def launch_tail() -> None:
    from npnet_kernels.linalg.rotation_launch import EntrywiseKernels

    matrix, values = torch.zeros(2, 256, 256, dtype=torch.float64), torch.zeros(2, 256, dtype=torch.float64)
    kernels = EntrywiseKernels()
    kernels.weighted_defect(matrix, values)
    kernels.rotations(matrix, matrix, matrix)
    kernels.worst_entry(matrix, matrix, matrix, matrix, values)


CASES: dict[str, Callable[[], None]] = {
    "spectral fp16 batch 1": lambda: launch_spectral(torch.float16, 1),
    "spectral fp32 batch 16": lambda: launch_spectral(torch.float32, 16),
    "whole fp32 batch 1": lambda: launch_whole(torch.float32, 1),
    "whole bf16 batch 16": lambda: launch_whole(torch.bfloat16, 16),
    "combine fp16": lambda: launch_combine(torch.float16, 1),
    "affine fp32": lambda: launch_affine(torch.float32, 2),
    "affine fp16": lambda: launch_affine_half(torch.float16, 2),
    "tail": launch_tail,
    "jacobi batch 1": lambda: launch_jacobi(1, coarse=1),
    "jacobi batch 16": lambda: launch_jacobi(16, coarse=0),  # tf32x3 needs more than TF32
    "affine mixed": lambda: launch_affine(torch.bfloat16, 2),
}


@pytest.mark.parametrize("capability", SHARED_KIB)
@pytest.mark.parametrize("case", CASES)
def test_compiles_without_spills(case: str, capability: int, recorder: Recorder, tmp_path: Path) -> None:
    CASES[case]()
    assert recorder.launches
    for launch in distinct(recorder.launches):
        compiled = compile_launch(launch, capability)
        usage = resources(compiled.asm["cubin"], tmp_path)
        name = launch.kernel.__name__
        assert compiled.metadata.shared <= SHARED_KIB[capability] * 1024, name
        assert (usage.stack, usage.local) == (0, 0), f"{name} spills: {usage}"
        assert usage.registers <= 255, name

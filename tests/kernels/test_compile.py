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
from npnet_kernels.attention import launch as attention
from npnet_kernels.backends import interpreting
from npnet_kernels.embedding import launch as embedding
from npnet_kernels.features import launch as features
from npnet_kernels.linalg import scaling, signs
from npnet_kernels.linalg.refinement import finish, refine
from npnet_kernels.linalg.schedule import Schedule
from npnet_kernels.linear import launch as linear
from npnet_kernels.reconstruction import launch as reconstruction
from npnet_kernels.statistics import launch as statistics

triton = pytest.importorskip("triton")
jacobi_launch = pytest.importorskip("npnet_kernels.linalg.jacobi_launch")
tail_kernels = pytest.importorskip("npnet_kernels.linalg.tail_kernels")
jacobi_kernels = pytest.importorskip("npnet_kernels.linalg.jacobi_kernels")
persistent_kernel = pytest.importorskip("npnet_kernels.linalg.persistent_kernel")
scaling_kernels = pytest.importorskip("npnet_kernels.linalg.scaling_kernels")
sign_kernels = pytest.importorskip("npnet_kernels.linalg.sign_kernels")
pytestmark = pytest.mark.skipif(interpreting(), reason="the interpreter replaces the compiler")

# Kernels launched without `launchable`, by module.
DIRECT = {
    jacobi_kernels: ("start", "angles", "square", "polynomial", "multiply", "defect"),
    persistent_kernel: ("jacobi",),
    tail_kernels: (
        "norms", "left_vectors", "weighted_change", "rotations", "worst_entry", "finish"
    ),
    scaling_kernels: ("largest", "scale"),
    sign_kernels: ("sign",),
}  # fmt: skip

# Shared memory that one block can have, in KiB (CUDA C++ Programming Guide, "Technical Specifications per
# Compute Capability": maximum amount of shared memory per thread block).
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
# The same table: shared memory of a multiprocessor, of which each block takes 1 KiB more than it asks for.
SHARED_KIB_PER_SM = {80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}
REGISTERS_PER_SM = 65536


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
    for module in (affine, attention, embedding, features, linear, reconstruction, statistics):
        monkeypatch.setattr(module, "launchable", recorder)
    for module, names in DIRECT.items():
        for name in names:
            monkeypatch.setattr(module, f"{name}_kernel", recorder(getattr(module, f"{name}_kernel")))
    return recorder


def compile_launch(launch: Launch, capability: int, scalar: str = "fp32") -> Any:
    """Compile a recorded launch with the specialisation that Triton's launcher would choose.

    `scalar` is the type of Python's floats, which AOTInductor takes for "fp64".
    """
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
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or one:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        signature[parameter.name] = scalar if isinstance(value, float) else type_of(value)
        divisible = isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize
        aligned = isinstance(value, torch.Tensor) and not parameter.do_not_specialize_on_alignment
        if aligned or divisible:
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


def launch_combine_with_peak(dtype: torch.dtype, batch: int) -> None:
    noise, _, _, _, scale_shift, residual = reconstruction_inputs(dtype, batch)
    peak = torch.zeros(batch, dtype=torch.int32)
    reconstruction.launch_combine(noise.float(), noise, scale_shift, residual, 0.3, 0.05, peak)


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


def launch_jacobi(driver: str) -> None:
    plan = Schedule(step=1.0, coarse=1, fine=1)
    jacobi_launch.jacobi_vectors(torch.zeros(2, 256, 256, dtype=torch.float64), plan, driver=driver)


def launch_tail() -> None:
    from npnet_kernels.linalg.tail_launch import EntrywiseKernels

    matrix = torch.zeros(2, 256, 256, dtype=torch.float64)
    refined = refine(matrix, matrix, steps=1, entrywise=EntrywiseKernels())
    finish(refined, poison=1e-6, entrywise=EntrywiseKernels())


def launch_ends() -> None:
    scaling.normalise_by_kernels(torch.zeros(2, 256, 256))
    matrix = torch.zeros(2, 256, 256)
    signs.flip_by_kernel(matrix, matrix, torch.zeros(256, dtype=torch.float64))


def launch_swin(dtype: torch.dtype, batch: int) -> None:
    """Every launch of the published prompt half behind the text affine."""

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype)

    def index(rows: int) -> torch.Tensor:
        return torch.zeros(rows, dtype=torch.int32)

    def norm(width: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(width), torch.zeros(width)

    def fused(x: torch.Tensor, weight: torch.Tensor, **given: Any) -> None:
        names = ("bias", "norm_weight", "norm_bias", "index", "residual", "residual_index")
        linear.launch_fused_linear(x, weight, *map(given.get, names), given.get("gelu", False), 1e-5)

    noise, scale_shift = torch.zeros(batch, 4, 128, 128), torch.zeros(batch, 8)
    weight, bias = torch.zeros(96, 64), torch.zeros(96)
    embedding.launch_embed_patches(
        noise, scale_shift, index(3136 * 16), weight, bias, *norm(96), 1e-6, 1e-5, dtype
    )
    for tokens, width, heads in ((3136, 96, 3), (784, 192, 6), (196, 384, 12), (49, 768, 24)):
        x, bias = zeros(batch, tokens, width), torch.zeros(width)
        if width > 96:
            weight, bias = norm(2 * width)
            fused(
                zeros(batch, 4 * tokens, width // 2), zeros(width, 2 * width), index=index(4 * tokens),
                norm_weight=weight, norm_bias=bias,
            )  # fmt: skip
        for windows in {1, tokens // 49}:
            attention.launch_window_attention(
                x, index(tokens), *norm(width), zeros(3 * width, width), torch.zeros(3 * width),
                torch.zeros(windows, heads, 49, 49), 1e-5,
            )  # fmt: skip
        fused(x, zeros(width, width), bias=bias, residual=x, residual_index=index(tokens))
        fused(x, zeros(width, width), bias=bias, residual=x)
        weight, bias = norm(width)
        fused(
            x,
            zeros(4 * width, width),
            bias=torch.zeros(4 * width),
            norm_weight=weight,
            norm_bias=bias,
            gelu=True,
        )
        fused(zeros(batch, tokens, 4 * width), zeros(width, 4 * width), bias=bias, residual=x)
    features.launch_residual_map(
        x, index(49), *norm(768), index(128), torch.zeros(4, 7), torch.zeros(4), 1e-5
    )


CASES: dict[str, Callable[[], None]] = {
    "spectral fp16 batch 1": lambda: launch_spectral(torch.float16, 1),
    "spectral fp32 batch 16": lambda: launch_spectral(torch.float32, 16),
    "whole fp32 batch 1": lambda: launch_whole(torch.float32, 1),
    "whole bf16 batch 16": lambda: launch_whole(torch.bfloat16, 16),
    "combine fp16": lambda: launch_combine(torch.float16, 1),
    "combine with peak fp32": lambda: launch_combine_with_peak(torch.float32, 2),
    "affine fp32": lambda: launch_affine(torch.float32, 2),
    "affine fp16": lambda: launch_affine_half(torch.float16, 2),
    "scaling and signs": launch_ends,
    "tail": launch_tail,
    "jacobi by phases": lambda: launch_jacobi("phases"),
    "jacobi, persistent": lambda: launch_jacobi("persistent"),
    "affine mixed": lambda: launch_affine(torch.bfloat16, 2),
    "swin fp32": lambda: launch_swin(torch.float32, 1),
}
# The same kernels with other tiles, or another dtype of operands that multiply alike.
MORE_CASES: dict[str, Callable[[], None]] = {
    "swin fp16": lambda: launch_swin(torch.float16, 1),
    "swin bf16": lambda: launch_swin(torch.bfloat16, 1),
    "swin fp16 batch 16": lambda: launch_swin(torch.float16, 16),
    "swin bf16 batch 16": lambda: launch_swin(torch.bfloat16, 16),
    "swin fp32 batch 16": lambda: launch_swin(torch.float32, 16),
}


@pytest.mark.parametrize("capability", SHARED_KIB)
@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES)]
)
def test_compiles_without_spills(case: str, capability: int, recorder: Recorder, tmp_path: Path) -> None:
    (CASES | MORE_CASES)[case]()
    assert recorder.launches
    for launch in distinct(recorder.launches):
        compiled = compile_launch(launch, capability)
        usage = resources(compiled.asm["cubin"], tmp_path)
        name = launch.kernel.__name__
        assert compiled.metadata.shared <= SHARED_KIB[capability] * 1024, name
        assert (usage.stack, usage.local) == (0, 0), f"{name} spills: {usage}"
        assert usage.registers <= 255, name


@pytest.mark.parametrize("capability", SHARED_KIB)
def test_persistent_programs_fit_together(capability: int, recorder: Recorder, tmp_path: Path) -> None:
    """As many as are launched: a program that finds no room would be waited for without end."""
    launch_jacobi("persistent")
    persistent = [one for one in recorder.launches if "launch_cooperative_grid" in one.options]
    assert [one.options["PRECISION"] for one in persistent] == ["tf32", "tf32x3"]
    for launch in persistent:
        compiled = compile_launch(launch, capability)
        usage = resources(compiled.asm["cubin"], tmp_path)
        together, threads = jacobi_launch.PROGRAMS_PER_SM, 32 * launch.options["num_warps"]
        registers = -(-usage.registers // 8) * 8  # given out in units of 8 a thread
        assert together * threads * registers <= REGISTERS_PER_SM
        assert together * (compiled.metadata.shared / 1024 + 1) <= SHARED_KIB_PER_SM[capability]
        assert compiled.metadata.launch_cooperative_grid


@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize("driver", ["phases", "persistent"])
def test_tf32_operands_are_rounded(driver: str, capability: int, recorder: Recorder) -> None:
    """`tl.dot` hands operands to the tensor cores as they are, which cut them off: so the kernel rounds.

    The sum with half of the last kept bit, and the mask of the kept ones.
    """
    launch_jacobi(driver)
    for launch in distinct(recorder.launches):
        if launch.options.get("PRECISION") != "tf32":
            continue
        ptx = compile_launch(launch, capability).asm["ptx"]
        products = re.findall(r"mma\.sync[\w.]*\.tf32\.tf32\.f32", ptx)
        added, masked = (len(re.findall(rf" {x};", ptx)) for x in ("4096", "-8192"))
        assert products, launch.kernel.__name__
        assert "wgmma" not in ptx  # one kind of product on all devices, in all batches
        # A register of either operand serves two products or more.
        assert min(added, masked) >= len(products), launch.kernel.__name__


@pytest.mark.parametrize("case", ["whole fp32 batch 1", "combine fp16", "swin fp32"])
def test_compiles_in_a_package(case: str, recorder: Recorder) -> None:
    CASES[case]()
    for launch in distinct(recorder.launches):
        compile_launch(launch, 80, scalar="fp64")


@pytest.mark.parametrize("capability", [90, 100])
@pytest.mark.parametrize("launch", [launch_swin, launch_spectral])
def test_tiles_of_every_batch_multiply_alike(
    launch: Callable[[torch.dtype, int], None], capability: int, recorder: Recorder
) -> None:
    """By the instruction of all architectures: with Hopper's or Blackwell's own in some tiles, and not in
    others, a result would depend on its batch. Programs of attention are the same in every batch."""
    for batch in (1, 16):
        launch(torch.float16, batch)
    tiled = [
        one
        for one in distinct(recorder.launches)
        if one.kernel.__name__ in ("linear_kernel", "reconstruct_kernel")
    ]
    assert len({str(one.options) for one in tiled}) > 1
    for one in tiled:
        ptx = compile_launch(one, capability).asm["ptx"]
        assert "mma.sync" in ptx
        assert not re.search("wgmma|tcgen05", ptx)


def test_a_batch_compiles_nothing_new(recorder: Recorder) -> None:
    """But wider tiles: no size of batch changes what Triton specialises a kernel to."""
    names = {"window_attention_kernel", "linear_kernel", "embed_kernel", "residual_kernel"}

    def variants() -> set[str]:
        keys = {specialised(one) for one in recorder.launches if one.kernel.__name__ in names}
        recorder.launches.clear()
        return keys

    launch_swin(torch.float16, 1)
    one = variants()
    assert len(one) <= 18
    launch_swin(torch.float16, 16)
    many = variants()
    launch_swin(torch.float16, 17)
    assert variants() == many
    assert len(one | many) <= 28


def specialised(launch: Launch) -> str:
    """What Triton compiles a launch once for."""
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
    kinds = [
        (type_of(value), value == 1, value % 16 == 0)
        for parameter in launch.kernel.params
        if isinstance(value := values.get(parameter.name), int) and not parameter.do_not_specialize
    ]
    return f"{launch.kernel.__name__} {launch.options} {kinds}"


def test_grid_barrier_orders_memory(recorder: Recorder) -> None:
    """Join the threads, release, acquire until all have come, join; and no load that may be stale."""
    launch_jacobi("persistent")
    for launch in distinct(recorder.launches):
        if launch.kernel.__name__ != "jacobi_kernel":
            continue
        ptx = compile_launch(launch, 90).asm["ptx"]
        lines = [line.strip() for line in ptx.splitlines()]
        order = [
            "sync" if line.startswith("bar.sync") else "atomic"
            for line in lines
            if line.startswith("bar.sync") or "atom." in line
        ]
        atomics = [line for line in lines if "atom." in line]
        barriers = 4 + (3 if launch.options["CLEAN"] else 0)
        assert len(atomics) == 2 * barriers
        assert all("atom.global.gpu.acq_rel.add.u32" in line for line in atomics)
        for i, kind in enumerate(order):
            if kind == "atomic":
                assert order[i - 1] == order[i + 1] == "sync"
        assert "ld.global.nc" not in ptx

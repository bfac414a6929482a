"""What each launch of a call with prepared noise does: programs, operations, bytes. Computed, not measured.

    python benchmarks/roofline.py --output benchmarks/results

The launches of the whole prompt half are recorded as they would go to a GPU, and nothing is run. The
roofline's time is the larger of operations over the peak rate and bytes over the bandwidth, of an H100 (SXM;
NVIDIA's data sheet): no kernel is faster, and none here was timed.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# As in the tests without a GPU: the operators choose their kernels for tensors on the CPU.
os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from harness import environment, write_json
from npnet_kernels import combine_with_peak, operators  # noqa: F401
from npnet_kernels.affine import launch as affine
from npnet_kernels.attention import launch as attention
from npnet_kernels.embedding import launch as embedding
from npnet_kernels.features import launch as features
from npnet_kernels.linear import launch as linear
from npnet_kernels.reconstruction import launch as reconstruction
from npnet_kernels.statistics import launch as statistics
from npnet_runtime.networks.fused import FusedPromptHalf
from npnet_runtime.networks.npnet import NPNet

MODULES = (affine, attention, embedding, features, linear, reconstruction, statistics)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
MULTIPROCESSORS = 132
MEMORY = 3.35e12  # bytes a second
# Operations a second on tensor cores. A product in "tf32x3" is three in TF32. `mma.sync`, which these kernels
# compile to for the sake of equal results in every batch, reaches about two thirds of it on Hopper.
PEAK = {"fp16": 989e12, "fp32": 494e12 / 3}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Args:
        kernel: its name.
        shape: what tells launches of one kernel apart.
        programs: of its grid.
        flop: additions and multiplications of its products.
        bytes: of the tensors that it reads or writes, each once.
    """

    kernel: str
    shape: str
    programs: int
    flop: int
    bytes: int

    def seconds(self, precision: str) -> float:
        """By the roofline."""
        return max(self.flop / PEAK[precision], self.bytes / MEMORY)


def main() -> int:
    """Print the tables, and write them."""
    options = _options()
    tables = []
    for precision in options.precision:
        for batch in options.batch:
            table = tabulate(record(precision, batch), precision)
            tables.append({"precision": precision, "batch": batch, **table})
            print(f"\n{precision}, batch {batch}: {table['launches']} launches, {table['roofline_us']} us")
            for row in table["rows"]:
                print(
                    f"{row['launches']:3} {row['kernel']:24} {row['shape']:25} {row['programs']:6} programs "
                    f"{row['flop'] / 1e9:8.3f} GFLOP {row['bytes'] / 1e6:8.3f} MB "
                    f"{row['roofline_us']:8.2f} us"
                )
    result = {
        "what": "computed from the launches' arguments, for an H100; nothing was run or timed",
        "command": "python benchmarks/roofline.py " + " ".join(sys.argv[1:]),
        "environment": environment(torch.device("cpu")),
        "device": {"multiprocessors": MULTIPROCESSORS, "bytes_per_s": MEMORY, "flop_per_s": PEAK},
        "tables": tables,
    }
    if options.output:
        write_json(options.output / "roofline.json", result)
    return 0


def record(precision: str, batch: int) -> list[Launch]:
    """The launches of a call with prepared noise at SDXL's size, in order."""
    launches: list[Launch] = []

    def launchable(kernel: Any) -> Any:
        names = list(inspect.signature(kernel.fn).parameters)

        def note(grid: tuple[int, ...], *given: Any, **options: Any) -> None:
            launches.append(_launch(kernel, names, grid, given, options))

        return _Kernel(note)

    with torch.inference_mode():
        network = NPNet().to_precision(DTYPES[precision]).eval()
        half, config = FusedPromptHalf(network.prompt_half, "triton"), network.config
        noise = torch.zeros(batch, *config.latent_shape)
        for module in MODULES:
            module.launchable = launchable  # type: ignore[attr-defined]
        prompted = half(noise, torch.zeros(batch, *config.text_shape))
        combine_with_peak(
            noise, noise.clone(), *prompted, text_weight=1.0, residual_weight=1.0, backend="triton"
        )
    return launches


def tabulate(launches: list[Launch], precision: str) -> dict[str, Any]:
    """Rows of equal launches, with their roofline; and the sums of all."""
    rows = []
    for one in dict.fromkeys(launches):
        count = launches.count(one)
        rows.append(
            {"launches": count, **asdict(one), "roofline_us": round(1e6 * one.seconds(precision), 3)}
            | {"of_multiprocessors": round(min(1.0, one.programs / MULTIPROCESSORS), 2)}
        )
    return {
        "launches": len(launches),
        "flop": sum(one.flop for one in launches),
        "bytes": sum(one.bytes for one in launches),
        "roofline_us": round(sum(1e6 * one.seconds(precision) for one in launches), 1),
        "rows": rows,
    }


class _Kernel:
    """Takes a grid, then arguments, as Triton's kernels do."""

    def __init__(self, launch: Callable[..., None]) -> None:
        self._launch = launch

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *given, **options: self._launch(grid, *given, **options)


def _launch(
    kernel: Any, names: list[str], grid: tuple[int, ...], given: tuple[Any, ...], options: dict[str, Any]
) -> Launch:
    values = dict(zip(names, given, strict=False)) | options
    programs = 1
    for side in grid:
        programs *= side
    tensors = {x.data_ptr(): x for x in values.values() if isinstance(x, Tensor)}
    moved = sum(x.numel() * x.element_size() for x in tensors.values())
    name = kernel.fn.__name__
    shape, flop = WORK[name](values, programs) if name in WORK else ("", 0)
    return Launch(name, shape, programs, flop, moved)


def _linear(v: dict[str, Any], programs: int) -> tuple[str, int]:
    terms = v["width"] * max(1, v["PIECES"])
    shape = f"{v['count']} x {terms} -> {v['columns']}, N {v['BLOCK_N']}"
    return shape, 2 * v["count"] * terms * v["columns"]


def _attention(v: dict[str, Any], programs: int) -> tuple[str, int]:
    tokens, head, width = v["window_tokens"], v["head_width"], v["width"]
    return f"{width} channels", programs * 2 * tokens * head * (3 * width + 2 * tokens)


def _embed(v: dict[str, Any], programs: int) -> tuple[str, int]:
    rows, terms = v["out_ptr"].shape[0] * v["patches"], v["channels"] * v["patch_pixels"]
    return f"{rows} x {terms} -> {v['width']}", 2 * rows * terms * v["width"]


def _partial(v: dict[str, Any], programs: int) -> tuple[str, int]:
    return f"{v['batch']} x {v['terms']} -> {v['outputs']}", 2 * v["batch"] * v["terms"] * v["outputs"]


# Kernels with products; what the others compute costs nothing beside what they move.
WORK: dict[str, Callable[[dict[str, Any], int], tuple[str, int]]] = {
    "linear_kernel": _linear,
    "window_attention_kernel": _attention,
    "embed_kernel": _embed,
    "partial_kernel": _partial,
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--output", "--out", type=Path, help="folder for roofline.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

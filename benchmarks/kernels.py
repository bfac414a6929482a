"""Measure the operators of `npnet_kernels`: time, error against float64, distance from the device's ceilings.

    python benchmarks/kernels.py --out benchmarks/results/kernels   # on a GPU
    python benchmarks/kernels.py --interpret                        # every kernel, no GPU, times mean nothing

Writes kernels.csv, kernels.json (with the environment) and kernels.png. A speed-up is stated only where both
the kernel and its rival agree with float64.
"""

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BATCHES = [1, 4, 16, 64]
OPERATORS = [
    "svd", "reconstruct", "combine", "text_affine", "prompt_half", "window_attention", "fused_linear"
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds, empty where there is nothing to say."""

    operator: str
    batch: int
    implementation: str
    median_ms: float
    p90_ms: float
    samples: int
    graph: bool
    max_error: float
    agrees: bool
    speedup_of_ours: float | None
    roofline_ms: float
    roofline_share: float


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if a kernel disagrees with float64."""
    options = parse(arguments)
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    import torch

    from harness import environment
    from kernels_timing import measure_roofline

    if not options.interpret and not torch.cuda.is_available():
        print("No CUDA device. To exercise the kernels without one: --interpret", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.interpret else "cuda")
    surroundings = environment(device) | device_details(device)
    roofline = measure_roofline(device)
    surroundings["copy bandwidth GB/s"] = f"{roofline.bytes_per_second / 1e9:.0f}"
    surroundings["matmul rate TFLOP/s"] = f"{roofline.flops_per_second / 1e12:.2f}"
    failed: dict[str, str] = {}
    rows: list[Row] = []
    for row in measure(options, device, roofline, failed):
        rows.append(row)
        if options.out:  # a run that is stopped keeps what it had
            write_rows(options.out, rows, surroundings, failed, interpreted=options.interpret)
    print(table(rows))
    for name, error in failed.items():
        print(f"not measured: {name}: {error}")
    if options.interpret:
        print("\nInterpreted on the CPU: the errors are meaningful, the times are not.")
    if options.out:
        write_rows(options.out, rows, surroundings, failed, interpreted=options.interpret)
        plot(options.out / "kernels.png", rows, surroundings, interpreted=options.interpret)
    ours = [row for row in rows if row.implementation == "ours"]
    return 0 if ours and not failed and all(row.agrees for row in ours) else 1


def device_details(device: Any) -> dict[str, Any]:
    """What kernel times depend on beyond the packages: the GPU, its driver and clocks, Triton."""
    import torch
    import triton

    details = {"triton": triton.__version__}
    if device.type == "cuda":
        fields = "name,driver_version,clocks.sm,clocks.mem,power.limit"
        query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=False)
        details |= {"device": torch.cuda.get_device_name(device), fields: found.stdout.strip()}
    return details


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--interpret", action="store_true", help="small sizes in Triton's interpreter, no GPU"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write CSV, JSON and PNG there")
    parser.add_argument(
        "--batch", type=int, nargs="+", metavar="B", help="default: 1 4 16 64 (1 2 interpreted)"
    )
    parser.add_argument("--operator", choices=OPERATORS, help="default: all")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--repeats", type=int, help="rounds (default: 50, 1 interpreted)")
    parser.add_argument("--seconds", type=float, help="about how long the timing of a case may take")
    parser.add_argument("--warm", action="store_true", help="leave the L2 cache alone between runs")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, device: Any, roofline: Any, failed: dict[str, str]) -> Iterator[Row]:
    """Rows as they are measured, of each case the errors first, then the interleaved times.

    What raises is left out, and named in `failed` with its error; the others go on.
    """
    import torch

    import kernels_cases
    import kernels_prompt_half
    from kernels_cases import Sizes

    sizes = Sizes(latent=8, tokens=5, dim=96) if options.interpret else Sizes()
    batches = options.batch or ([1, 2] if options.interpret else BATCHES)
    for operator, make in (kernels_cases.MAKERS | kernels_prompt_half.MAKERS).items():
        if options.operator not in (None, operator):
            continue
        for batch in batches:
            try:
                case = make(batch, sizes, device, getattr(torch, options.dtype))
                yield from rows_of(case, options, device, roofline, failed)
            except Exception as error:  # a compiler's, a driver's, too little memory
                failed[f"{operator}, batch {batch}"] = f"{type(error).__name__}: {error}"


def rows_of(
    case: Any, options: argparse.Namespace, device: Any, roofline: Any, failed: dict[str, str]
) -> list[Row]:
    """The rows of one case: ours, and the rivals that run."""
    from kernels_timing import interleave

    exact = case.exact()
    errors: dict[str, float] = {}
    runs = {"ours": case.ours}
    for name, run in {**runs, **case.rivals}.items():
        try:
            errors[name] = float((run().cpu().double() - exact).abs().amax())
            runs[name] = run
        except Exception as error:
            if name == "ours":
                raise
            failed[f"{case.operator}, batch {case.batch}, {name}"] = f"{type(error).__name__}: {error}"
    agrees = {name: error <= case.tolerance for name, error in errors.items()}
    repeats = options.repeats or (1 if options.interpret else 50)
    times = interleave(runs, case.capturable, device, repeats, cold=not options.warm, seconds=options.seconds)
    least = roofline.milliseconds(case.read_write, case.flops)
    rows = []
    for name, timing in times.items():
        comparable = name != "ours" and agrees["ours"] and agrees[name] and not options.interpret
        rows.append(
            Row(
                operator=case.operator,
                batch=case.batch,
                implementation=name,
                median_ms=timing.median,
                p90_ms=timing.p90,
                samples=timing.samples,
                graph=device.type == "cuda" and name in case.capturable,
                max_error=errors[name],
                agrees=agrees[name],
                speedup_of_ours=timing.median / times["ours"].median if comparable else None,
                roofline_ms=least,
                roofline_share=least / timing.median,
            )
        )
    return rows


def table(rows: list[Row]) -> str:
    """A plain table, one line a row."""
    heads = ("operator", "batch", "", "median ms", "p90 ms", "error", "ours is", "roofline")
    layout = "{:12} {:>5} {:14} {:>10} {:>9} {:>8} {:>8} {:>8}"
    lines = [layout.format(*heads)]
    for row in rows:
        speedup = "" if row.speedup_of_ours is None else f"{row.speedup_of_ours:.1f}x"
        if not row.agrees:
            speedup = "wrong"
        times = f"{row.median_ms:.4f}", f"{row.p90_ms:.4f}"
        share = f"{row.roofline_share:.1%}"
        fields = (row.operator, row.batch, row.implementation, *times, f"{row.max_error:.1e}", speedup, share)
        lines.append(layout.format(*fields))
    return "\n".join(lines)


def write_rows(
    folder: Path,
    rows: list[Row],
    surroundings: dict[str, Any],
    failed: dict[str, str],
    *,
    interpreted: bool,
) -> None:
    """Write kernels.csv and kernels.json below `folder`."""
    from harness import write_json
    from npnet_runtime.files import atomic_file

    with (
        atomic_file(folder / "kernels.csv") as temporary,
        temporary.open("w", newline="") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(Row.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    record = {
        "environment": surroundings,
        "interpreted": interpreted,
        "failed": failed,
        "rows": [asdict(row) for row in rows],
    }
    write_json(folder / "kernels.json", record)


def plot(path: Path, rows: list[Row], surroundings: dict[str, Any], *, interpreted: bool) -> None:
    """Time against batch, an axis for each operator, with the roofline dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    operators = list(dict.fromkeys(row.operator for row in rows))
    figure, axes = pyplot.subplots(1, len(operators), figsize=(4.2 * len(operators), 3.8), squeeze=False)
    for axis, operator in zip(axes[0], operators, strict=True):
        chosen = [row for row in rows if row.operator == operator]
        for name in dict.fromkeys(row.implementation for row in chosen):
            points = [(row.batch, row.median_ms) for row in chosen if row.implementation == name]
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        ours = [row for row in chosen if row.implementation == "ours"]
        axis.plot([row.batch for row in ours], [row.roofline_ms for row in ours], "k--", label="roofline")
        axis.set(title=operator, xlabel="batch", ylabel="ms", xscale="log", yscale="log")
        axis.legend(fontsize=7)
    title = f"{surroundings['device']}, {surroundings['date']}"
    figure.suptitle(title + (" (interpreter: times mean nothing)" if interpreted else ""), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())

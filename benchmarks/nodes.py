"""How much is queued on the device: nodes of every graph, operations and host waits of a call. No times.

    run DIR python benchmarks/nodes.py --output benchmarks/results

`run` is that of a stand-in for a GPU: real CUDA builds of PyTorch and Triton over libraries that do nothing,
which counts what they are asked to do (the module `standin`). A call of cuBLAS counts as one node; a real one
may launch several kernels. Host time is that of Python and PyTorch on this CPU, without the driver;
a copy is done by this CPU too, so that in larger batches it is most of what is timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from harness import environment, write_json
from npnet_export import ExportSettings, export
from npnet_export.weights import WeightsRequest
from npnet_kernels import latent_to_matrix
from npnet_kernels.linalg import svd as svd_module
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.hot_path.capture import Capture
from npnet_runtime.hot_path.graphed import SOLVER
from npnet_runtime.weights.models import MODELS

# Nodes that a graph may have. What is aimed at stands beside what is held now.
GOALS = {"svd": 80, "prepare": 110, "prepared call": 75}
LIMITS = {"svd": 30, "prepare": 60, "prepared call": 62, "call": 122}
CALLS = 200  # whose host time is taken


def main() -> int:
    """Count and write; 1 if a graph is beyond its limit, or a real device would have refused something."""
    options = _options()
    try:
        standin = import_module("standin")
    except ImportError:
        print(
            "expected the stand-in: start it with its `run DIR python benchmarks/nodes.py`", file=sys.stderr
        )
        return 2
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for engine in options.engine:
            for precision in options.precision:
                bundle = build(Path(folder) / f"{engine}-{precision}", engine, precision, max(options.batch))
                for batch in options.batch:
                    rows += count(bundle, batch)
                    for row in rows[-4:]:
                        print(f"{row['engine']} batch {row['batch']}: {row['graph']}: {row['nodes']} nodes")
    violations = standin.violations()
    result = {
        "what": "counted on a stand-in for a GPU; no time here is one of a GPU",
        "command": "run DIR python benchmarks/nodes.py " + " ".join(sys.argv[1:]),
        "environment": environment(torch.device("cuda")),
        "goals": GOALS,
        "limits": LIMITS,
        "rows": rows,
        "violations": violations,
    }
    if options.output:
        write_json(options.output / "nodes.json", result)
    beyond = [row for row in rows if row["nodes"] > LIMITS[row["graph"]]]
    for row in beyond:
        print(f"beyond the limit of {LIMITS[row['graph']]}: {row['engine']}, {row['graph']}: {row['nodes']}")
    return 1 if beyond or violations else 0


def build(folder: Path, engine: str, precision: str, max_batch: int = 8) -> EngineBundle:
    """A full-size SDXL engine with random weights, not compared: nothing here computes numbers."""
    weights = WeightsRequest(MODELS["sdxl"], None, 0)
    return export(
        ExportSettings(
            weights, folder, "sdxl", engine, precision, max_batch=max_batch, device="cuda", verify=False
        )
    )


def count(bundle: EngineBundle, batch: int) -> list[dict[str, Any]]:
    """Rows of the SVD alone, of `prepare`, of a call with prepared noise and of one with noise.

    Args:
        bundle: of an engine that CUDA graphs can hold.
        batch: of noises and prompts, at most the engine's largest.
    """
    standin = import_module("standin")

    svd_module._check_finite = lambda matrix: None  # a flag that is computed on the device reads False
    golden = GoldenNoise(bundle, device="cuda", cuda_graphs=True)
    config, manifest = bundle.manifest.config, bundle.manifest
    dtype = torch.float32 if manifest.precision == "fp32" else torch.float16
    noise = torch.zeros(batch, *config.latent_shape, device="cuda", dtype=dtype)
    prompts = torch.zeros(batch, *config.text_shape, device="cuda", dtype=dtype)
    prepared = golden.prepare(noise)
    matrix = latent_to_matrix(noise.float())
    calls: dict[str, Callable[[], object]] = {
        "svd": lambda: Capture(golden.device)(lambda: svd_module.svd(matrix, solver=SOLVER).u),
        "prepare": lambda: golden.prepare(noise),
        "prepared call": lambda: golden(prepared, prompts),
        "call": lambda: golden(noise, prompts),
    }
    rows = []
    captured = standin.graphs()[-1:]  # by the `prepare` above
    for name, call in calls.items():
        before = len(standin.graphs())
        call()
        new = standin.graphs()[before:]
        if name == "prepare":
            new = captured
        names = new[-1]["names"]
        row = {"engine": f"{manifest.engine} {manifest.precision}", "batch": batch, "graph": name}
        row |= {"nodes": new[-1]["nodes"], "names": dict(sorted(names.items(), key=lambda item: -item[1]))}
        if name != "svd":
            standin.reset()
            call()
            row |= {
                "operations": sum(standin.launches().values()),
                "host_waits": standin.state()["host_waits"],
            }
            row["host_us_without_driver"] = _host_time(call)
        rows.append(row)
    return rows


def _host_time(call: Callable[[], object]) -> dict[str, float]:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    return {"median": round(statistics.median(times), 1), "least": round(min(times), 1)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", nargs="+", default=["torch"], help="default: %(default)s; also aoti")
    parser.add_argument("--precision", nargs="+", default=["fp32", "fp16", "bf16"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--output", "--out", type=Path, help="folder for nodes.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

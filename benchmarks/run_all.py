"""Every benchmark in one command: `python benchmarks/run_all.py --out results`.

Each runs in its own process with a limit of its own; one that fails does not stop the others. On one
H100-class GPU all of them are meant to fit in eight minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent


def plan(cuda: bool, out: Path) -> dict[str, tuple[list[str], int]]:
    """Name -> arguments and limit in seconds."""
    batches = ["1", "4", "16", "64"] if cuda else ["1", "4"]
    rounds = "50" if cuda else "30"
    output = ["--output", str(out)]
    return {
        "latency": (["latency.py", "--batch", *batches, "--rounds", rounds, *output], 180 if cuda else 900),
        "kernels": (["kernels.py", "--out", str(out), *([] if cuda else ["--interpret"])], 120),
        "pipeline": (
            ["pipeline_overhead.py", "--rounds", "5", "--size", "full" if cuda else "small", *output],
            110,
        ),
        "training": (
            ["training.py", "--batch", "32" if cuda else "4", *output],
            70 if cuda else 300,
        ),
    }


def main() -> int:
    """Run them; the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for JSON, CSV and PNG")
    options = parser.parse_args()
    failed = []
    for name, (arguments, limit) in plan(torch.cuda.is_available(), options.out).items():
        print(f"== {name}: python benchmarks/{' '.join(arguments)}", flush=True)
        start = time.monotonic()
        command = [sys.executable, str(HERE / arguments[0]), *arguments[1:]]
        try:
            status = subprocess.run(command, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            status = -1
            print(f"   stopped after {limit} s")
        print(f"   status {status} after {time.monotonic() - start:.0f} s", flush=True)
        failed += [name] if status else []
    print(f"failed: {', '.join(failed)}" if failed else "all done")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Cold start and peak memory of one engine, in a process of its own: prints one JSON object.

Called by `latency.py`. Cold start is from opening the bundle to the first golden noise, after imports.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from harness import synchronize
from npnet_runtime import EngineBundle, GoldenNoise


def main(folder: str, device_name: str, batch: int) -> None:
    """Measure the bundle in `folder`."""
    device = torch.device(device_name)
    config = EngineBundle.open(folder).manifest.config
    noise = torch.zeros(batch, *config.latent_shape, device=device)
    noise[..., ::2, :] = 1
    prompts = torch.zeros(batch, *config.text_shape, device=device)
    before = _peak_mb()
    synchronize(device)
    start = time.perf_counter()
    GoldenNoise(folder, device=device)(noise, prompts)
    synchronize(device)
    seconds = time.perf_counter() - start
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e6
    else:
        peak = _peak_mb() - before  # what the engine added to the process
    print(json.dumps({"cold_start_s": seconds, "peak_mb": peak}))


def _peak_mb() -> float:
    # not `ru_maxrss`, which starts from the parent's
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e3
    return float("nan")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

"""Cold start and peak memory of one contender, in a process of its own: prints one JSON object.

Called by `latency.py`. Cold start is from opening the file to the first golden noise, after imports.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from baseline import PublishedNPNet
from harness import synchronize
from npnet_runtime import EngineBundle, GoldenNoise, NPNetConfig
from npnet_runtime.weights import checkpoint


def main(path: str, device_name: str, batch: int) -> None:
    """Measure the bundle at `path`, or the published computation if it is a checkpoint."""
    device = torch.device(device_name)
    published = Path(path).is_file()
    config = checkpoint.own_config(path) if published else EngineBundle.open(path).manifest.config
    assert config is not None  # `latency.py` writes the project's own form of a checkpoint
    noise = torch.randn(batch, *config.latent_shape, device=device)
    prompts = torch.randn(batch, *config.text_shape, device=device)
    before = _peak_mb()
    synchronize(device)
    start = time.perf_counter()
    with torch.inference_mode():
        if published:
            assert isinstance(config, NPNetConfig)
            PublishedNPNet(config, checkpoint.read(path).state).to(device)(noise, prompts)
        else:
            GoldenNoise(path, device=device)(noise, prompts)
    synchronize(device)
    seconds = time.perf_counter() - start
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e6
    else:
        peak = _peak_mb() - before  # what it added to the process
    print(json.dumps({"cold_start_s": seconds, "peak_mb": peak}))


def _peak_mb() -> float:
    # not `ru_maxrss`, which starts from the parent's
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e3
    return float("nan")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="a bundle, or a checkpoint for the published computation")
    parser.add_argument("device")
    parser.add_argument("batch", type=int)
    options = parser.parse_args()
    main(options.path, options.device, options.batch)

"""What every benchmark here shares: interleaved timing, statistics, the environment, results on disk."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from npnet_runtime.files import atomic_file

FEWEST = 5  # timed calls of what is slow


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call took, and how often it was timed."""

    median: float
    p90: float
    p99: float
    samples: int

    @classmethod
    def of(cls, milliseconds: list[float]) -> Timing:
        """Statistics of a list of times."""
        ordered = sorted(milliseconds)

        def percentile(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        return cls(statistics.median(ordered), percentile(0.90), percentile(0.99), len(ordered))


def interleave(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    warmup: int = 3,
    before: Mapping[str, Callable[[], object]] | None = None,
    seconds: float | None = None,
) -> dict[str, Timing]:
    """Time several calls side by side: one of each per round, so that a busy moment hits all alike.

    Args:
        calls: by name; each does the whole of what is timed.
        rounds: timed calls of each.
        device: synchronised before and after every call if it is a CUDA device.
        warmup: untimed rounds before.
        before: by the name of a call, what comes before it and is not timed. What it leaves at work, on other
            threads or streams, goes on beside the call.
        seconds: about how long it may take in all: slow calls sit out some of the rounds, see `turns`.
    """

    def timed(name: str) -> float:
        synchronize(device)
        if before and name in before:
            before[name]()
        start = time.perf_counter()
        calls[name]()
        synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    last: dict[str, float] = {}
    for _ in range(warmup):
        last = {name: timed(name) for name in calls}
    plan = turns(last, rounds, seconds) if seconds and last else dict.fromkeys(calls, range(rounds))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in calls:
            if index in plan[name]:
                times[name].append(timed(name))
    return {name: Timing.of(values) for name, values in times.items()}


def turns(milliseconds: Mapping[str, float], rounds: int, seconds: float) -> dict[str, Collection[int]]:
    """The rounds in which each call is timed, so that all calls together take about `seconds`.

    Each call gets an equal share of the time and at least `FEWEST` rounds, spread evenly. What a quick call
    leaves of its share goes to nobody.

    Args:
        milliseconds: that a call takes, by name.
        rounds: the most rounds of a call.
        seconds: for all calls together.
    """
    share = 1e3 * seconds / len(milliseconds)
    plan: dict[str, Collection[int]] = {}
    for name, each in milliseconds.items():
        count = min(rounds, max(FEWEST, int(share / max(each, 1e-6))))
        plan[name] = {index * rounds // count for index in range(count)}
    return plan


def synchronize(device: torch.device) -> None:
    """Wait for the device, if it runs beside the host."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def environment(device: torch.device) -> dict[str, Any]:
    """What the numbers of a run depend on."""
    from npnet_export.build import environment as packages

    found = {"date": time.strftime("%Y-%m-%d"), "cpu": _cpu(), "cores": os.cpu_count()}
    found |= {"torch_threads": torch.get_num_threads(), "device": str(device), "commit": _commit()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["compute_capability"] = f"{properties.major}.{properties.minor}"
        found["gpu_memory_gb"] = round(properties.total_memory / 1e9)
    return found | packages()


def write_json(path: Path, content: Any) -> None:
    """Write results whole or not at all, creating the folder: a run that is stopped keeps what it had."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

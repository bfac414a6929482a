"""Timing for `kernels.py`: device events, CUDA graphs where they can be held, the device's own ceilings."""

import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from harness import Timing, turns

Run = Callable[[], Tensor]


def interleave(
    runs: dict[str, Run],
    capturable: frozenset[str],
    device: torch.device,
    repeats: int,
    *,
    cold: bool,
    seconds: float | None = None,
) -> dict[str, Timing]:
    """Time the runs in turn, so that clocks and neighbours weigh on all of them alike.

    `harness.interleave` does the same with the host's clock; here the device's events resolve microseconds.

    Args:
        runs: what to time, by name.
        capturable: the runs to replay from a CUDA graph, as the runtime does.
        device: where they run.
        repeats: rounds.
        cold: overwrite the L2 cache before every run.
        seconds: about how long it may take in all: slow runs sit out some of the rounds.
    """
    prepared = {name: _prepare(run, device, name in capturable) for name, run in runs.items()}
    cache = (
        torch.empty(256 << 20, dtype=torch.uint8, device=device) if cold and device.type == "cuda" else None
    )
    samples: dict[str, list[float]] = {name: [] for name in runs}
    plan: dict[str, Collection[int]] = dict.fromkeys(runs, range(repeats))
    if seconds:
        plan = turns({name: _milliseconds(run, device) for name, run in prepared.items()}, repeats, seconds)
    for index in range(repeats):
        for name, run in prepared.items():
            if index not in plan[name]:
                continue
            if cache is not None:
                cache.zero_()
            samples[name].append(_milliseconds(run, device))
    return {name: Timing.of(times) for name, times in samples.items()}


def _prepare(run: Run, device: torch.device, capturable: bool) -> Callable[[], object]:
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    if not capturable:
        return run
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


@dataclass(frozen=True)
class Roofline:
    """What the device itself reaches: bytes a second of a copy, read and write counted, and flops of TF32."""

    bytes_per_second: float
    flops_per_second: float

    def milliseconds(self, moved: int, flops: int) -> float:
        """The least time for this work."""
        return max(moved / self.bytes_per_second, flops / self.flops_per_second) * 1e3


def measure_roofline(device: torch.device) -> Roofline:
    """Measure a 1 GiB copy and an 8192^3 TF32 product; 64 MiB and a float32 1024^3 on a CPU."""
    cuda = device.type == "cuda"
    source = torch.empty((1 << 30) if cuda else (64 << 20), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if cuda else 1024
    a = torch.randn(side, side, device=device)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        copies = [_milliseconds(lambda: target.copy_(source), device) for _ in range(10)]
        products = [_milliseconds(lambda: a @ a, device) for _ in range(10)]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    bytes_per_second = 2 * source.numel() / statistics.median(copies) * 1e3
    return Roofline(bytes_per_second, 2 * side**3 / statistics.median(products) * 1e3)

"""The path on CUDA with graphs: whole calls captured once for each size of batch, then replayed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy
import torch
from torch import Tensor

from npnet_runtime.backends.pool import Pool
from npnet_runtime.hot_path.base import Early, Texts, on_device
from npnet_runtime.hot_path.capture import Capture
from npnet_runtime.hot_path.finite import all_finite
from npnet_runtime.hot_path.passes import Pass, Solver
from npnet_runtime.hot_path.static import Buffer, StaticCall, bucket_for
from npnet_runtime.hot_path.streams import MAX_CALLERS, StreamPath, overlapped
from npnet_runtime.networks.graphs import Shape
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.registry import NetworkConfig

log = logging.getLogger(__name__)
SOLVER: Solver = "jacobi"  # the only one that a CUDA graph can hold
EARLY, PREPARED, WHOLE = "prepare", "prepared noise", "noise"
MOST_GRAPHS = 64
"""Of a lane: more than a network of one size needs; those of other sizes come and go."""


class Golden(NamedTuple):
    """What the graph of a call leaves: golden noise on the device, its largest magnitudes on the host."""

    noise: Tensor
    peaks: numpy.ndarray[Any, Any]


@dataclass
class Lane:
    """What one call at a time uses: graphs and their buffers; and a stream, for what has its own."""

    record: Capture
    stream: torch.cuda.Stream
    calls: dict[tuple[str, int, tuple[Shape, ...]], StaticCall[Any]] = field(default_factory=dict)


class GraphPath:
    """Replays graphs on the caller's current stream; `prepare` on a stream of its own, without waiting.

    A graph is captured when a size of batch is first met: 1, 2, 4, ... and the engine's largest; and, where a
    network takes several, when a size of noise or prompt is.

    Inputs are copied into a graph's buffers, not read where they lie: any number of prepared noises may be
    kept, used in any order and by several threads, and a graph holds addresses. Prepared noise and its
    spectral half lie one behind the other for that, and are one copy.

    Args:
        new_steps: makes steps whose runs may be captured, for one graph.
        direct: the path without graphs, for noise whose decomposition the graph's solver does not find.
        config: of the network.
        device: a CUDA device.
        max_batch: largest batch of one run.
    """

    def __init__(
        self,
        new_steps: Callable[[], Pass],
        direct: StreamPath,
        config: NetworkConfig,
        device: torch.device,
        max_batch: int,
    ) -> None:
        self._new_steps, self._direct = new_steps, direct
        self._device, self._max_batch = device, max_batch
        self._prepares = isinstance(config, NPNetConfig)
        # Noise is prepared beside calls, so it has lanes of its own.
        self._calls: Pool[Lane] = Pool(self._new_lane, MAX_CALLERS, self._discard)
        self._preparations: Pool[Lane] = Pool(self._new_lane, MAX_CALLERS, self._discard)
        self._captured: list[str] = []  # kinds; appended to by every caller
        self._repeated = 0

    def prepare(self, noise: Tensor) -> Early:
        """See `Path`."""
        if not self._prepares:
            return Early(None, torch.cuda.current_stream(self._device).record_event())
        with on_device(self._device), self._preparations.borrow() as lane:
            stacked = torch.empty(2, *noise.shape, device=self._device, dtype=torch.float32)
            stacked[0].copy_(noise)
            # Its own stream orders the uses of the lane.
            lane.stream.wait_stream(torch.cuda.current_stream())
            stacked.record_stream(lane.stream)
            with torch.cuda.stream(lane.stream):
                for rows in self._chunks(len(noise)):
                    given, early = stacked[:, rows]
                    call = self._call(lane, EARLY, len(given), (given.shape[1:],))
                    early.copy_(call(given)[: len(given)])
                return Early(stacked[1], lane.stream.record_event(), stacked)

    def golden(self, noise: Tensor, early: Early | None, texts: Texts, out: Tensor) -> bool:
        """See `Path`. The host waits once for each graph replayed, and the lane is idle afterwards."""
        with on_device(self._device), self._calls.borrow() as lane:
            current = torch.cuda.current_stream()
            if early is not None and early.ready is not None:
                current.wait_event(early.ready)
            if early is None or early.tensor is None:
                kind, first, axis = WHOLE, noise, 0
            else:
                kind, first, axis = PREPARED, _stacked(noise, early), 1
            if len(out) <= self._max_batch:
                return self._replay(lane, kind, current, first, texts, out)
            finite = True
            for rows in self._chunks(len(out)):
                part = first[rows] if axis == 0 else first[:, rows]
                finite &= self._replay(lane, kind, current, part, tuple(t[rows] for t in texts), out[rows])
            return finite

    def again(self, noise: Tensor, texts: Texts, out: Tensor) -> bool:
        """See `Path`: without a graph, where other solvers run."""
        log.warning("golden noise was not finite: solved again without a CUDA graph")
        self._repeated += 1
        return self._direct.golden(noise, None, texts, out)

    def warm_up(self, batches: Sequence[int], callers: int, shapes: tuple[Shape, ...]) -> None:
        """See `Path`: all graphs, for each of the lanes that so many callers use."""
        kinds = [(self._calls, WHOLE)]
        if self._prepares:
            kinds += [(self._calls, PREPARED), (self._preparations, EARLY)]
        with on_device(self._device):
            for pool, kind in kinds:
                with ExitStack() as borrowed:
                    lanes = [borrowed.enter_context(pool.borrow()) for _ in range(min(callers, MAX_CALLERS))]
                    for lane in lanes:
                        for batch in batches:
                            read = shapes[:1] if kind == EARLY else shapes
                            self._call(lane, kind, min(batch, self._max_batch), read)

    def describe(self) -> list[str]:
        """See `Path`."""
        captured = ", ".join(f"{count} for {kind}" for kind, count in Counter(self._captured).items())
        svd = f", svd by {SOLVER} in all of them" if self._prepares else ""
        return [f"graphs captured: {captured or 'none yet'}{svd}; calls repeated without: {self._repeated}"]

    def _chunks(self, batch: int) -> list[slice]:
        return [
            slice(first, min(first + self._max_batch, batch)) for first in range(0, batch, self._max_batch)
        ]

    def _replay(
        self, lane: Lane, kind: str, current: torch.cuda.Stream, first: Tensor, texts: Texts, out: Tensor
    ) -> bool:
        """Queue a batch of at most `max_batch`, wait, and say whether the result is finite."""
        count = len(out)
        shapes = tuple(tensor.shape[1:] for tensor in (out, *texts))
        golden, peaks = self._call(lane, kind, count, shapes)(first, *texts)
        out.copy_(golden if len(golden) == count else golden[:count])
        current.synchronize()
        return all_finite(peaks[:count].tolist(), out.dtype)

    def _call(self, lane: Lane, kind: str, count: int, shapes: tuple[Shape, ...]) -> StaticCall[Any]:
        """The graph for a batch, captured if it is not there yet; the least recently used may go for it."""
        bucket = bucket_for(count, self._max_batch)
        key = (kind, bucket, shapes)
        call = lane.calls.pop(key, None)
        if call is None:
            if len(lane.calls) >= MOST_GRAPHS:
                torch.cuda.synchronize(self._device)  # it may be running
                del lane.calls[next(iter(lane.calls))]
            compute, buffers = self._computation(kind, bucket, *shapes)
            call = StaticCall(compute, buffers, lane.record)
            self._captured.append(kind)
        lane.calls[key] = call
        return call

    def _computation(
        self, kind: str, bucket: int, latent: Shape, *texts: Shape
    ) -> tuple[Callable[..., Any], list[Buffer]]:
        """What a graph holds for noise and texts of such shapes, and the buffers of its inputs."""
        # Numbers like those to come: a capture is preceded by runs in earnest, and zeros have no SVD.
        generator = torch.Generator(self._device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, device=self._device, dtype=torch.float32, generator=generator)

        steps = self._new_steps()
        if kind == EARLY:
            return lambda noise: steps.before_prompt(noise, SOLVER), [Buffer(draw(bucket, *latent))]
        side = torch.cuda.Stream(self._device)
        pinned = torch.empty(bucket, dtype=torch.float32, pin_memory=self._device.type == "cuda")

        def golden(noise: Tensor, early: Tensor | None, texts: Texts) -> Golden:
            noise, peak = overlapped(steps, noise, early, texts, side, SOLVER)
            pinned.copy_(peak, non_blocking=True)
            return Golden(noise, pinned.numpy())

        read = [Buffer(draw(bucket, *shape)) for shape in texts]
        if kind == WHOLE:
            own = Buffer(draw(bucket, *latent))
            return lambda noise, *texts: golden(noise, None, texts), [own, *read]
        stacked = Buffer(draw(2, bucket, *latent), axis=1)
        return lambda given, *texts: golden(given[0], given[1], texts), [stacked, *read]

    def _new_lane(self) -> Lane:
        return Lane(Capture(self._device), torch.cuda.Stream(self._device))

    def _discard(self, lane: Lane) -> None:
        torch.cuda.synchronize(self._device)  # its graphs may be running, and read what the caller drops


def _stacked(noise: Tensor, early: Early) -> Tensor:
    """`early.stacked`; made here if the same engine prepared it without graphs."""
    if early.stacked is not None:
        return early.stacked
    return torch.stack((noise.float(), cast(Tensor, early.tensor)))

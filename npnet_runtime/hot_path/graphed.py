"""The path on CUDA with graphs: whole calls captured once for each size of batch, then replayed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from npnet_runtime.backends.pool import Pool
from npnet_runtime.hot_path.base import Early
from npnet_runtime.hot_path.capture import Capture
from npnet_runtime.hot_path.passes import Pass, Solver
from npnet_runtime.hot_path.static import Recorder, StaticCall, bucket_for
from npnet_runtime.hot_path.streams import MAX_CALLERS, StreamPath, overlapped
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.registry import NetworkConfig

log = logging.getLogger(__name__)
SOLVER: Solver = "jacobi"  # the only one that a CUDA graph can hold
EARLY, PREPARED, WHOLE = "prepare", "prepared noise", "noise"


@dataclass
class Lane:
    """What one call at a time uses: streams, buffers, graphs, and the end of its last use."""

    record: Recorder
    stream: torch.cuda.Stream
    done: torch.cuda.Event
    calls: dict[tuple[str, int], StaticCall] = field(default_factory=dict)


class GraphPath:
    """Replays graphs on the caller's current stream; `prepare` on a stream of its own, without waiting.

    A graph is captured when a size of batch is first met. Sizes are 1, 2, 4, ... and the engine's largest.

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
        self._latent, self._text = config.latent_shape, config.text_shape
        self._prepares = isinstance(config, NPNetConfig)
        # Noise is prepared beside calls, so it has lanes of its own.
        self._calls: Pool[Lane] = Pool(self._new_lane, MAX_CALLERS, self._discard)
        self._preparations: Pool[Lane] = Pool(self._new_lane, MAX_CALLERS, self._discard)
        self._captured: list[str] = []  # kinds; appended to by every caller
        self._repeated = 0

    def prepare(self, noise: Tensor) -> Early:
        """See `Path`."""
        if not self._prepares:
            return Early(None)
        with torch.cuda.device(self._device), self._preparations.borrow() as lane:
            early = torch.empty_like(noise)
            # Its own stream orders the uses of the lane.
            lane.stream.wait_stream(torch.cuda.current_stream())
            for tensor in (noise, early):
                tensor.record_stream(lane.stream)
            with torch.cuda.stream(lane.stream):
                for rows in self._chunks(len(noise)):
                    early[rows].copy_(self._call(lane, EARLY, noise[rows]))
                return Early(early, lane.stream.record_event())

    def golden(self, noise: Tensor, early: Tensor | None, prompt_embeds: Tensor, out: Tensor) -> None:
        """See `Path`."""
        inputs = (noise, prompt_embeds) if early is None else (noise, prompt_embeds, early)
        with torch.cuda.device(self._device), self._calls.borrow() as lane:
            current = torch.cuda.current_stream()
            current.wait_event(lane.done)
            for rows in self._chunks(len(noise)):
                values = (tensor[rows] for tensor in inputs)
                out[rows].copy_(self._call(lane, WHOLE if early is None else PREPARED, *values))
            lane.done.record(current)

    def again(self, noise: Tensor, prompt_embeds: Tensor, out: Tensor) -> bool:
        """See `Path`: without a graph, where other solvers run."""
        log.warning("golden noise was not finite: solved again without a CUDA graph")
        self._repeated += 1
        self._direct.golden(noise, None, prompt_embeds, out)
        return True

    def describe(self) -> list[str]:
        """See `Path`."""
        captured = ", ".join(f"{count} for {kind}" for kind, count in Counter(self._captured).items())
        svd = f", svd by {SOLVER}" if self._prepares else ""
        return [f"graphs captured: {captured or 'none yet'}{svd}; calls repeated without: {self._repeated}"]

    def _chunks(self, batch: int) -> list[slice]:
        return [
            slice(first, min(first + self._max_batch, batch)) for first in range(0, batch, self._max_batch)
        ]

    def _call(self, lane: Lane, kind: str, *inputs: Tensor) -> Tensor:
        bucket = bucket_for(len(inputs[0]), self._max_batch)
        if (kind, bucket) not in lane.calls:
            lane.calls[kind, bucket] = StaticCall(
                self._computation(kind), self._buffers(kind, bucket), lane.record
            )
            self._captured.append(kind)
        return lane.calls[kind, bucket](*inputs)

    def _computation(self, kind: str) -> Callable[..., Tensor]:
        steps = self._new_steps()
        if kind == EARLY:
            return lambda noise: cast(Tensor, steps.before_prompt(noise, SOLVER))
        side = torch.cuda.Stream(self._device)
        if kind == WHOLE:
            return lambda noise, prompts: overlapped(steps, noise, None, prompts, side, SOLVER)
        return lambda noise, prompts, early: overlapped(steps, noise, early, prompts, side)

    def _buffers(self, kind: str, bucket: int) -> tuple[Tensor, ...]:
        # Numbers like those to come: a capture is preceded by runs in earnest, and zeros have no SVD.
        generator = torch.Generator(self._device).manual_seed(0)

        def draw(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(bucket, *shape, device=self._device, dtype=torch.float32, generator=generator)

        if kind == EARLY:
            return (draw(self._latent),)
        inputs = draw(self._latent), draw(self._text)
        return inputs if kind == WHOLE else (*inputs, draw(self._latent))

    def _new_lane(self) -> Lane:
        return Lane(Capture(self._device), torch.cuda.Stream(self._device), torch.cuda.Event())

    def _discard(self, lane: Lane) -> None:
        torch.cuda.synchronize(self._device)  # its graphs may be running

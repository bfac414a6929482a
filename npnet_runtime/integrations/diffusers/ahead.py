"""The spectral half of a noise, computed while the prompt is being encoded."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from npnet_runtime.golden import GoldenNoise, PreparedNoise


class Ahead:
    """`golden.prepare(noise)` on another thread and, on CUDA, another stream.

    Args:
        golden: the engine.
        noise: (B, C, H, W) on its device.
        worker: the thread.
    """

    def __init__(self, golden: GoldenNoise, noise: Tensor, worker: ThreadPoolExecutor) -> None:
        self._golden = golden
        self._stream: torch.cuda.Stream | None = None
        if noise.is_cuda:
            self._stream = torch.cuda.Stream(noise.device)
            self._stream.wait_stream(torch.cuda.current_stream(noise.device))
            noise.record_stream(self._stream)  # it may be freed here while it is read there
        self._future: Future[PreparedNoise] = worker.submit(self._prepare, noise)

    def result(self) -> PreparedNoise:
        """The prepared noise, ready for the current stream.

        Raises:
            InputError: noise that the engine cannot take.
        """
        prepared = self._future.result()
        if self._stream is not None:
            current = torch.cuda.current_stream(prepared.noise.device)
            current.wait_stream(self._stream)
            prepared.noise.record_stream(current)
            if prepared.spectral is not None:
                prepared.spectral.record_stream(current)
        return prepared

    def cancel(self) -> None:
        """Not needed, or not any more. What runs already runs to its end."""
        self._future.cancel()

    def _prepare(self, noise: Tensor) -> PreparedNoise:
        with torch.cuda.stream(self._stream):  # None: no change
            return self._golden.prepare(noise)

"""The spectral half of a noise, computed while the prompt is being encoded."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from npnet_runtime.hot_path.prepared import PreparedNoise
from npnet_runtime.integrations.protocol import Golden


class Ahead:
    """`golden.prepare(noise)` on another thread, from what the current stream holds now.

    Not on this thread: on a CPU, and on CUDA without graphs, `prepare` waits for its result.

    Args:
        golden: the engine.
        noise: (B, C, H, W) on its device.
        worker: the thread.
    """

    def __init__(self, golden: Golden, noise: Tensor, worker: ThreadPoolExecutor) -> None:
        self._golden = golden
        self._stream: torch.cuda.Stream | None = None
        if noise.is_cuda:
            # The thread may start late, when the encoder's work is queued here: that is not waited for.
            self._stream = torch.cuda.Stream(noise.device)
            self._stream.wait_stream(torch.cuda.current_stream(noise.device))
            noise.record_stream(self._stream)  # it may be freed here while it is read there
        self._future: Future[PreparedNoise] = worker.submit(self._prepare, noise)

    def result(self) -> PreparedNoise:
        """The prepared noise; on CUDA perhaps still at work, which a call waits for on its stream.

        Raises:
            InputError: noise that the engine cannot take.
        """
        return self._future.result()

    def cancel(self) -> None:
        """Not needed, or not any more. What runs already runs to its end."""
        self._future.cancel()

    def _prepare(self, noise: Tensor) -> PreparedNoise:
        with torch.cuda.stream(self._stream):  # None: no change
            return self._golden.prepare(noise)

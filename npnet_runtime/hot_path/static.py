"""A computation on buffers that never move: what a CUDA graph needs, for one size of batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Recording(NamedTuple):
    """A computation that can be done again, and where it leaves its result."""

    replay: Callable[[], object]
    output: Tensor


Recorder = Callable[[Callable[[], Tensor]], Recording]


def bucket_for(batch: int, max_batch: int) -> int:
    """The size of the buffers that serve a batch: the next of 1, 2, 4, ..., `max_batch`.

    Args:
        batch: from 1 to `max_batch`.
        max_batch: the largest batch that the engine takes, any number.
    """
    return min(1 << (batch - 1).bit_length(), max_batch)


class StaticCall:
    """A recorded computation, called with batches of up to the size of its buffers.

    Rows beyond a batch hold what an earlier call left there. No row depends on another, and the buffers have
    one size whatever the batch, so that they do not reach the result.

    Args:
        compute: from tensors like `buffers` to one of as many rows.
        buffers: of the inputs, filled with values that may be computed with.
        record: turns a computation on the buffers into one that can be done again.
    """

    def __init__(self, compute: Callable[..., Tensor], buffers: tuple[Tensor, ...], record: Recorder) -> None:
        self._buffers = buffers
        self._recording = record(lambda: compute(*buffers))

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The result for a batch, in a buffer that the next call overwrites.

        Args:
            inputs: of the shapes of the buffers but for fewer rows, of any floating dtype and any strides.
        """
        for buffer, values in zip(self._buffers, inputs, strict=True):
            buffer[: len(values)].copy_(values)
        self._recording.replay()
        return self._recording.output[: len(inputs[0])]

"""A computation on buffers that never move: what a CUDA graph needs, for one size of batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

T = TypeVar("T")


class Recording(NamedTuple, Generic[T]):
    """A computation that can be done again, and where it leaves its result."""

    replay: Callable[[], object]
    output: T


def bucket_for(batch: int, max_batch: int) -> int:
    """The size of the buffers that serve a batch: the next of 1, 2, 4, ..., `max_batch`.

    Args:
        batch: from 1 to `max_batch`.
        max_batch: the largest batch that the engine takes, any number.
    """
    return min(1 << (batch - 1).bit_length(), max_batch)


def buckets(max_batch: int) -> list[int]:
    """Every size of buffers that `bucket_for` gives, ascending."""
    return sorted({bucket_for(batch, max_batch) for batch in range(1, max_batch + 1)})


class Buffer(NamedTuple):
    """Where an input is put, and which of its axes counts the rows of a batch."""

    tensor: Tensor
    axis: int = 0


class StaticCall(Generic[T]):
    """A recorded computation, called with batches of up to the size of its buffers.

    Rows beyond a batch hold what an earlier call left there. No row depends on another, and the buffers have
    one size whatever the batch, so that they do not reach the result.

    Args:
        compute: from tensors like those of `buffers` to a result of as many rows.
        buffers: of the inputs, filled with values that may be computed with.
        record: turns a computation on the buffers into one that can be done again.
    """

    def __init__(
        self,
        compute: Callable[..., T],
        buffers: Sequence[Buffer],
        record: Callable[[Callable[[], T]], Recording[T]],
    ) -> None:
        self._buffers = tuple(buffers)
        self._recording = record(lambda: compute(*(buffer.tensor for buffer in self._buffers)))

    def __call__(self, *inputs: Tensor) -> T:
        """The result in buffers that the next call overwrites; of its rows the first are those of the batch.

        Args:
            inputs: of the shapes of the buffers but for fewer rows, of any floating dtype and any strides.
        """
        for (buffer, axis), values in zip(self._buffers, inputs, strict=True):
            if values.shape != buffer.shape:
                buffer = buffer.narrow(axis, 0, values.shape[axis])
            buffer.copy_(values)
        self._recording.replay()
        return self._recording.output

"""What `GoldenNoise` asks of a path."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from npnet_runtime.networks.graphs import Shape

Texts = tuple[Tensor, ...]
"""What a network reads beside the noise, in the order of its graph, a row for each noise: the prompt
embeddings (B, tokens, width) first. Any floating dtype, any strides."""


class Early(NamedTuple):
    """What was computed before the prompt, and when it is there.

    `tensor` is None if there was nothing to compute. `ready` is None where it is there already; on CUDA a
    stream that reads `tensor` waits for it first. `stacked` (2, B, C, H, W) float32, where graphs are
    replayed, holds the noise of the network's size and `tensor`, so that one copy brings both to a graph.
    """

    tensor: Tensor | None
    ready: torch.cuda.Event | None = None
    stacked: Tensor | None = None


class Path(Protocol):
    """Lays the two halves of a pass over a device. Safe to call from several threads.

    Called in inference mode, without autocast. Noise is of the network's own size, of any floating dtype and
    any strides; on CUDA all is ordered on the caller's current stream, but for what `prepare` says.
    """

    def prepare(self, noise: Tensor) -> Early:
        """Begin what noise (B, C, H, W) allows before the prompt is known.

        On CUDA it runs on a stream of its own, beside what the caller queues next.

        Raises:
            InputError: the noise has no singular value decomposition. A path that does not wait for the
                device gives NaN instead.
        """

    def golden(self, noise: Tensor, early: Early | None, texts: Texts, out: Tensor) -> bool:
        """Write golden noise, and wait until it is there: the inputs may be dropped afterwards.

        Args:
            noise: (B, C, H, W).
            early: what `prepare` gave for it; None to compute it beside the rest.
            texts: see `Texts`.
            out: (B, C, H, W) of any floating dtype.

        Returns:
            Whether every value of `out` is finite.
        """

    def again(self, noise: Tensor, texts: Texts, out: Tensor) -> bool:
        """Try once more what gave no finite numbers from finite inputs, by a slower and more robust way.

        Returns:
            As `golden`; False where there is no such way.
        """

    def warm_up(self, batches: Sequence[int], callers: int, shapes: tuple[Shape, ...]) -> None:
        """Make ahead what calls with these sizes of batch from so many threads at once would make.

        Args:
            batches: sizes of batch.
            callers: threads.
            shapes: of the noise and of the texts, without the batch.

        Raises:
            BackendError: too little memory, or the device refuses.
        """

    def describe(self) -> list[str]:
        """Lines for `GoldenNoise.report`."""


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one, which costs less where it is already."""
    return nullcontext() if torch.cuda.current_device() == device.index else torch.cuda.device(device)

"""What `GoldenNoise` asks of a path."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Early(NamedTuple):
    """What was computed before the prompt, None if there was nothing to; and when it is there.

    `ready` is None where it is there already; on CUDA a stream that reads `tensor` waits for it first.
    """

    tensor: Tensor | None
    ready: torch.cuda.Event | None = None


class Path(Protocol):
    """Lays the two halves of a pass over a device. Safe to call from several threads.

    Called in inference mode, without autocast. Noise is float32, contiguous, of the network's own size; on
    CUDA all is ordered on the caller's current stream, but for what `prepare` says.
    """

    def prepare(self, noise: Tensor) -> Early:
        """Begin what noise (B, C, H, W) allows before the prompt is known.

        On CUDA it runs on a stream of its own, beside what the caller queues next.

        Raises:
            InputError: the noise has no singular value decomposition. A path that does not wait for the
                device gives NaN instead.
        """

    def golden(self, noise: Tensor, early: Tensor | None, prompt_embeds: Tensor, out: Tensor) -> None:
        """Write golden noise.

        Args:
            noise: (B, C, H, W).
            early: `prepare`'s tensor, there for the current stream; None to compute it beside the rest.
            prompt_embeds: (B, tokens, width), any floating dtype, any strides.
            out: (B, C, H, W) of any floating dtype.
        """

    def again(self, noise: Tensor, prompt_embeds: Tensor, out: Tensor) -> bool:
        """Try once more what gave no finite numbers from finite inputs, by a slower and more robust way.

        Returns:
            Whether there is such a way.
        """

    def describe(self) -> list[str]:
        """Lines for `GoldenNoise.report`."""

"""The launch of the statistics. Imports Triton when called."""

from typing import NamedTuple

import torch
from torch import Tensor

from npnet_kernels.backends import launchable
from npnet_kernels.tiles import power_of_two

_SMALLEST_CHUNK, _LARGEST_CHUNK, _CHUNKS_WANTED = 1024, 8192, 256


class Statistics(NamedTuple):
    """Means and squared deviations by chunk, `(B, 2, chunks)` float32, and the values in a chunk."""

    partial: Tensor
    chunk: int

    @property
    def chunks(self) -> int:
        """Chunks of a latent."""
        return self.partial.shape[2]

    @property
    def padded_chunks(self) -> int:
        """The power of two that a kernel holds them in."""
        return power_of_two(self.chunks)


def launch_statistics(noise: Tensor, peak: Tensor | None = None) -> Statistics:
    """Statistics of `(B, C, H, W)` of any strides: many programs a latent, merged by `merge_statistics`.

    `peak` (B,) int32 is set to zero beside: what a later kernel takes a maximum into.
    """
    from npnet_kernels.statistics.kernels import statistics_kernel

    batch, channels, height, width = noise.shape
    size = channels * height * width
    chunk = min(power_of_two(-(-size // _CHUNKS_WANTED), _SMALLEST_CHUNK), _LARGEST_CHUNK)
    chunks = -(-size // chunk)
    partial = torch.empty(batch, 2, chunks, dtype=torch.float32, device=noise.device)
    launchable(statistics_kernel)[(chunks, batch)](
        noise, partial, partial if peak is None else peak, channels, height, width, *noise.stride(), chunks,
        PEAK=peak is not None, BLOCK=chunk,
    )  # fmt: skip
    return Statistics(partial, chunk)

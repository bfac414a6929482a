"""What a back end does for `GoldenNoise`."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Backend(Protocol):
    """Runs the two graphs of a bundle on one device. Safe to call from several threads.

    Tensors in and out are contiguous float32 on `device`; on CUDA the work is ordered after what the
    caller queued on its current stream, and before what it queues next.
    """

    device: torch.device

    def spectral_head(self, u: Tensor, s: Tensor, vh: Tensor) -> Tensor:
        """(B, rows, k), (B, k), (B, k, columns) -> corrections f (B, k); see `network.SpectralHead`."""

    def prompt_half(self, noise: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B, tokens, width) -> scale_shift, residual; see `network.PromptHalf`."""

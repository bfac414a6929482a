"""Noise with the work done that needs no prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PreparedNoise:
    """Noise with the work done that needs no prompt; pass it to `GoldenNoise` in place of the noise.

    It does not depend on the prompt: prepare a seed once, use it with any prompt. It may be in use, or in a
    cache: leave its tensors as they are.

    Args:
        noise: (B, C, H, W), a copy of what was given.
        spectral: (B, *config.latent_shape) float32, the finished spectral half of an NPNet; None for another
            kind of network, which can do nothing before the prompt is known.
        engine: digest of the bundle that made it.
        ready: on CUDA, the end of the work on both tensors, which may still be going on. A call waits for it.
    """

    noise: Tensor
    spectral: Tensor | None
    engine: str
    ready: torch.cuda.Event | None = None

    def claim(self) -> Tensor | None:
        """The spectral half, for use on the current stream."""
        if self.ready is not None:
            current = torch.cuda.current_stream(self.noise.device)
            current.wait_event(self.ready)
            for tensor in (self.noise, self.spectral):
                if tensor is not None:
                    tensor.record_stream(current)  # the caller may drop it before this stream is done
        return self.spectral

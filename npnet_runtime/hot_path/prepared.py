"""Noise with the work done that needs no prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npnet_runtime.hot_path.base import Early


@dataclass(frozen=True, eq=False)
class PreparedNoise:
    """Noise with the work done that needs no prompt; pass it to `GoldenNoise` in place of the noise.

    It does not depend on the prompt: prepare a seed once, use it with any prompt. It may be in use, or in a
    cache: leave its tensors as they are.

    Args:
        noise: (B, C, H, W), a copy of what was given.
        early: the work that was done.
        engine: digest of the bundle that made it.
    """

    noise: Tensor
    early: Early
    engine: str

    @property
    def spectral(self) -> Tensor | None:
        """(B, *config.latent_shape) float32, the finished spectral half of an NPNet.

        None for another kind of network, which can do nothing before the prompt is known.
        """
        return self.early.tensor

    @property
    def ready(self) -> torch.cuda.Event | None:
        """On CUDA, the end of the work on the tensors, which may still be going on. A call waits for it."""
        return self.early.ready

"""What a loss is given beside the network's output: one batch of noise pairs, on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from npnet_kernels import SVD


@dataclass(frozen=True)
class TrainBatch:
    """A batch of B noise pairs.

    Args:
        source: (B, C, H, W) float32, the noise x_T that the network is given.
        target: (B, C, H, W) float32, the noise x'_T it is to give (paper, eq. 7); None where a loss needs
            none.
        prompt_embeds: (B, tokens, width), each sample's own.
        factors: SVD of the source's matrix, when the network needs it.
        prompts: the B prompts as text.
        seeds: the B seeds of the sources.
    """

    source: Tensor
    target: Tensor | None
    prompt_embeds: Tensor
    factors: SVD | None
    prompts: Sequence[str]
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.source)

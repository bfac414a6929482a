"""What a loss is given beside the network's output: one batch of noise pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from npnet_kernels import SVD
from npnet_runtime.inputs.texts import Prompt


@dataclass(frozen=True)
class TrainBatch:
    """A batch of B noise pairs, on the training device when a loss sees it.

    Args:
        source: (B, C, H, W) float32, the noise x_T that the network is given.
        target: (B, C, H, W) float32, the noise x'_T it is to give (paper, eq. 7); None where a loss needs
            none.
        prompt: what is encoded of each sample's own, (B, ...).
        factors: SVD of the source's matrix, when the network needs it.
        prompts: the B prompts as text.
        seeds: the B seeds of the sources.
    """

    source: Tensor
    target: Tensor | None
    prompt: Prompt
    factors: SVD | None
    prompts: Sequence[str]
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.source)

    def to(self, device: torch.device) -> TrainBatch:
        """The same batch on another device; pinned memory is copied without waiting."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> TrainBatch:
        """The same batch in page-locked memory; `torch.utils.data.DataLoader` calls this by name."""
        return self._map(Tensor.pin_memory)

    def with_prompts_of_others(self) -> TrainBatch:
        """Every noise with the prompt of the one before it."""
        prompts = [*self.prompts[-1:], *self.prompts[:-1]]
        return replace(self, prompt=self.prompt.map(lambda tensor: tensor.roll(1, 0)), prompts=prompts)

    def _map(self, function: Callable[[Tensor], Tensor]) -> TrainBatch:
        return replace(
            self,
            source=function(self.source),
            target=None if self.target is None else function(self.target),
            prompt=self.prompt.map(function),
            factors=None if self.factors is None else SVD(*map(function, self.factors)),
        )

"""Exponential moving average of the weights (Polyak and Juditsky 1992), on whatever shards they lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


class WeightAverage:
    """The average of a network's trained parameters.

    `torch.optim.swa_utils.AveragedModel` copies the module, which a wrapped one does not allow; this keeps
    tensors beside the parameters, sharded as they are.

    Args:
        network: as prepared for training.
        decay: share of the average kept in a step; 0 keeps no average and `applied` does nothing. In the
            first steps it is at most (1 + step) / (10 + step), so that the first weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._sharded = [module for module in network.modules() if isinstance(module, FSDPModule)]
        self.parameters = [p for p in network.parameters() if p.requires_grad] if decay else []
        self.averages: list[Tensor] = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        if self.parameters:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def reset(self) -> None:
        """Make the average the weights as they are."""
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.copy_(parameter)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the averaged weights inside the block, and its own again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # After a forward pass without a backward one FSDP keeps the gathered weights for the next.
        for module in self._sharded:
            module.reshard()
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

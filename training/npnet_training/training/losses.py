"""Losses in noise space: what a network's golden noise is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from npnet_training.errors import DatasetError
from npnet_training.training.batch import TrainBatch

Loss = Callable[[Tensor, TrainBatch], Tensor]
"""Golden noise (B, C, H, W) and its batch -> a scalar."""


def mse(golden: Tensor, batch: TrainBatch) -> Tensor:
    """Mean squared error over all entries (arXiv 2411.09502, equation 8)."""
    return F.mse_loss(golden.float(), target_of(batch))


def cosine(golden: Tensor, batch: TrainBatch) -> Tensor:
    """`mse`, and one minus the cosine of the two changes, averaged over the batch.

    So small changes count as much as large ones.
    """
    change, wanted = golden.float() - batch.source, target_of(batch) - batch.source
    angle = 1 - F.cosine_similarity(change.flatten(1), wanted.flatten(1), eps=1e-6)
    return mse(golden, batch) + angle.mean()


def target_of(batch: TrainBatch) -> Tensor:
    """The batch's target.

    Raises:
        DatasetError: it has none.
    """
    if batch.target is None:
        raise DatasetError("this loss needs pairs with targets, as npnet-collect makes them")
    return batch.target

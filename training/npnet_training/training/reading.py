"""From rows of a dataset to batches on the training device, read ahead by worker processes if asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from npnet_kernels import SVD
from npnet_runtime.inputs.texts import Prompt
from npnet_training.training.batch import TrainBatch
from npnet_training.training.embeddings import EmbeddingCache
from npnet_training.training.factors import FactorCache, compute_factors
from npnet_training.training.order import BatchRows
from npnet_training.training.source import PairSource


class BatchReader(Dataset[TrainBatch]):
    """Reads batches by their rows.

    Args:
        pairs: the dataset.
        embeddings: of its prompts, filled; None for a network that reads their texts.
        factors: of its sources, filled; None when the network needs none, or they are computed per batch.
        compute_svd: compute the factors of every batch.
        flip_seed: flip singular pairs at random with this seed; None for no flips.
    """

    def __init__(
        self,
        pairs: PairSource,
        embeddings: EmbeddingCache | None,
        factors: FactorCache | None,
        *,
        compute_svd: bool = False,
        flip_seed: int | None = None,
    ) -> None:
        self.pairs = pairs
        self.embeddings = embeddings
        self.factors = factors
        self.compute_svd = compute_svd
        self.flip_seed = flip_seed

    def __getitem__(self, key: BatchRows) -> TrainBatch:
        """The batch of the given rows, on the CPU."""
        pairs = self.pairs.batch(key.rows)
        factors = self.factors.get(list(key.rows)) if self.factors is not None else None
        if self.compute_svd:
            factors = compute_factors(pairs.source)
        if factors is not None and self.flip_seed is not None:
            factors = flip_signs(factors, self.flip_seed, key)
        prompt = Prompt(pairs.source.new_empty(len(pairs.source), 0, 0))
        if self.embeddings is not None:
            prompt = self.embeddings.get(pairs.prompts)
        return TrainBatch(
            pairs.source, pairs.target, prompt, factors, tuple(pairs.prompts), tuple(map(int, pairs.seeds))
        )

    def batches(self, keys: Iterable[BatchRows], device: torch.device, workers: int) -> Iterator[TrainBatch]:
        """Batches in order, on the device."""
        # Any: a collate function is taken to be of a list, which it is not without automatic batches
        as_it_is: Any = _as_it_is
        loader: DataLoader[TrainBatch] = DataLoader(
            self,
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            collate_fn=as_it_is,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own: reading draws nothing from the global stream
        )
        for batch in loader:
            yield batch.to(device)


def _as_it_is(batch: TrainBatch) -> TrainBatch:
    return batch


def flip_signs(factors: SVD, seed: int, key: BatchRows) -> SVD:
    """Flip each singular pair with probability one half; the product u diag(s) vh stays the same.

    The flips depend on the seed, the epoch and the row alone, so they are the same on any number of
    processes.
    """
    k = factors.s.shape[1]
    draws = [np.random.default_rng([seed, 1, key.epoch, row]).integers(0, 2, k) for row in key.rows]
    signs: Tensor = 1 - 2 * torch.from_numpy(np.stack(draws)).to(factors.s)
    return SVD(factors.u * signs[:, None, :], factors.s, factors.vh * signs[:, :, None])

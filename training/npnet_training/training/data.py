"""Everything a run reads, made ready: pairs, their split, cached embeddings and factors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from npnet_training.errors import DatasetError
from npnet_training.pairs import PairDataset
from npnet_training.training.collapse import check_pairs
from npnet_training.training.embeddings import EmbeddingCache
from npnet_training.training.factors import FactorCache
from npnet_training.training.networks import require_one_size
from npnet_training.training.order import split_by_prompt
from npnet_training.training.reading import BatchReader
from npnet_training.training.settings import TrainSettings
from npnet_training.training.texts import Texts, texts_of


@dataclass(frozen=True)
class TrainingData:
    """What training and validation read.

    Args:
        pairs: the dataset.
        train: rows to train on.
        validation: rows of prompts that are never trained on.
        quarantined: pairs left out because they are not finite.
        reader: of training batches.
        plain_reader: of validation batches, without augmentation.
        texts: what the network reads of a prompt.
    """

    pairs: PairDataset
    train: np.ndarray
    validation: np.ndarray
    quarantined: int
    reader: BatchReader
    plain_reader: BatchReader
    texts: Texts


def open_data(settings: TrainSettings, accelerator: Accelerator) -> TrainingData:
    """Open the pairs and fill the caches, each process its share.

    Raises:
        SettingsError: pairs of several sizes, for a network of one.
        DatasetError: the pairs cannot be used, or their model has another revision or other embeddings now.
        ModelError: prompts must be encoded and the model cannot be loaded.
        InputError, DownloadError: a text encoder of the network's own is not there.
        TrainError: a cache cannot be written, or the targets do not depend on their sources.
    """
    share = {"process": accelerator.process_index, "processes": accelerator.num_processes}
    pairs = PairDataset.open(settings.data, kept_only=settings.uses_target)
    require_one_size(settings.network.kind, pairs.shapes)
    if settings.uses_target and not pairs.info.has_targets:
        raise DatasetError(
            f"--loss {settings.loss}: expected pairs with targets, given prompts and noises only (they were "
            "collected with --no-targets); give --loss reward"
        )
    cached = settings.reads_factors and settings.cache_svd
    factors = FactorCache(settings.cache_dir, pairs, with_factors=cached)
    factors.fill(accelerator.device, **share)
    texts = texts_of(settings, pairs.info, accelerator.device)
    embeddings = _embeddings(settings, pairs, texts, accelerator, share)
    accelerator.wait_for_everyone()
    if embeddings is not None:
        embeddings.refresh()
    usable = factors.usable()
    if settings.loss in ("mse", "cosine") and not settings.allow_collapse:
        check_pairs(pairs, np.flatnonzero(usable))
    held_out = split_by_prompt(pairs.prompts, settings.validation.share, settings.seed)
    train, validation = np.flatnonzero(usable & ~held_out), np.flatnonzero(usable & held_out)
    if settings.validation.share and not len(validation):
        raise DatasetError(
            f"--validation.share: of {len(set(pairs.prompts))} prompts none falls to validation at "
            f"{settings.validation.share}; raise it, collect more prompts, or give 0"
        )
    if settings.validation.max_pairs is not None:
        validation = validation[: settings.validation.max_pairs]
    kept = factors if cached else None
    compute = settings.reads_factors and not cached
    flips = settings.seed if settings.sign_augmentation else None
    return TrainingData(
        pairs, train, validation, int((~usable).sum()),
        BatchReader(pairs, embeddings, kept, compute_svd=compute, flip_seed=flips),
        BatchReader(pairs, embeddings, kept, compute_svd=compute), texts,
    )  # fmt: skip


def _embeddings(
    settings: TrainSettings,
    pairs: PairDataset,
    texts: Texts,
    accelerator: Accelerator,
    share: dict[str, int],
) -> EmbeddingCache | None:
    if not texts.shapes:
        return None
    cache = EmbeddingCache(settings.cache_dir, texts.key, texts.shapes, torch.float32)
    missing = cache.missing(pairs.prompts)
    accelerator.wait_for_everyone()  # all have seen the same before any writes
    if missing:
        encode = texts.encode_by(pairs.info, accelerator.device, offline=settings.offline)
        cache.fill(missing, encode, settings.encode_batch, **share)
    return cache

"""From prompts to a dataset of noise pairs: what is missing is made, here or on a cluster, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from npnet_training.collecting.cluster import RayPool
from npnet_training.collecting.collector import Collector
from npnet_training.collecting.items import Item, done, items, shards_there
from npnet_training.collecting.settings import CollectSettings
from npnet_training.errors import DatasetError
from npnet_training.pairs.info import FILE, PairInfo
from npnet_training.settings import differences
from npnet_training.storage import exists, is_free


@dataclass(frozen=True)
class Progress:
    """After a shard: pairs made and kept in all; pairs and images made in this run, and its seconds."""

    pairs: int
    kept: int
    new: int
    images: int
    seconds: float


def collect(
    settings: CollectSettings,
    report: Callable[[Progress], None] = lambda progress: None,
    collector: Callable[[CollectSettings], Collector] = Collector,
) -> Progress:
    """Make the dataset, or what is missing of it.

    Args:
        settings: see there.
        report: called after every shard.
        collector: what makes the pairs, where it is not on Ray.

    Raises:
        DatasetError: the folder holds another dataset or cannot be written.
        TrainingError: a model, scorer or prompt is wrong.
    """
    began = time.perf_counter()
    next(items(settings))  # prompts that cannot be read end it before a model is loaded or a folder made
    pairs = kept = new = 0

    def todo(info: PairInfo, there: frozenset[str]) -> Iterator[Item]:
        nonlocal pairs, kept
        for item in items(settings):
            count = done(settings, item, info, there)
            if count is None:
                yield item
            else:
                pairs, kept = pairs + len(item.prompts), kept + count

    def progress() -> Progress:
        images = 2 * new if settings.scorers else 0
        return Progress(pairs, kept, new, images, time.perf_counter() - began)

    with _workers(settings, collector) as workers:
        info = workers.info()
        info = _begin(settings, info)
        for item, count in workers.collect_all(todo(info, shards_there(settings))):
            pairs, kept, new = pairs + len(item.prompts), kept + count, new + len(item.prompts)
            report(progress())
    return progress()


def _workers(
    settings: CollectSettings, collector: Callable[[CollectSettings], Collector]
) -> AbstractContextManager[Collector | RayPool]:
    if settings.ray is None:
        return nullcontext(collector(settings))
    return RayPool(settings)


def _begin(settings: CollectSettings, info: PairInfo) -> PairInfo:
    """The dataset's own description, as it was begun."""
    folder = settings.folder
    if exists(folder / FILE):
        found = PairInfo.read(folder)
        if not settings.resume:
            raise DatasetError(f"{folder} holds a dataset: go on with --resume, or give another --output")
        if found.latent_space is None:
            info = replace(info, latent_space=None)  # begun before it was recorded
        if found != info:
            wrong = differences(_flat(found), _flat(info))
            raise DatasetError(f"{folder} was collected with other settings:\n  " + "\n  ".join(wrong))
        return info
    if not is_free(folder):
        raise DatasetError(f"{folder} exists and is no dataset of noise pairs: give another --output")
    try:
        info.write(folder)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be written ({error})") from error
    return info


def _flat(info: PairInfo) -> dict[str, Any]:
    values = {**vars(info), **info.settings}
    del values["settings"]
    return values

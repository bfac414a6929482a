"""The work cut into items: each becomes one shard, and depends on nothing but the settings and its number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from npnet_training.collecting.settings import CollectSettings
from npnet_training.errors import DatasetError
from npnet_training.pairs.shard import open_shard, shard_path
from npnet_training.prompts import read_prompts
from npnet_training.storage import exists


@dataclass(frozen=True)
class Item:
    """Some pairs to make.

    Args:
        number: of the shard.
        first: number of its first pair.
        prompts: one for each pair.
        seeds: one for each pair.
    """

    number: int
    first: int
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


def items(settings: CollectSettings) -> Iterator[Item]:
    """All items, in order, read as they are asked for."""
    prompts = itertools.islice(read_prompts(settings.prompts), settings.max_prompts)
    rows = (
        (prompt.text, settings.seed + number * settings.seeds + repeat)
        for number, prompt in enumerate(prompts)
        for repeat in range(settings.seeds)
    )
    for number in itertools.count():
        part = list(itertools.islice(rows, settings.batch))
        if not part:
            return
        texts, seeds = zip(*part, strict=True)
        yield Item(number, number * settings.batch, texts, seeds)


def done(settings: CollectSettings, item: Item) -> int | None:
    """How many pairs of the item's shard are kept, if it is there; else None.

    Raises:
        DatasetError: the shard is damaged, or of other prompts.
    """
    path = shard_path(settings.folder, item.number)
    if not exists(path):
        return None
    table = open_shard(path).read(["prompt", "seed", "kept"])
    if (tuple(table["prompt"].to_pylist()), tuple(table["seed"].to_pylist())) != (item.prompts, item.seeds):
        raise DatasetError(
            f"{path} was collected from other prompts than {settings.prompts} has there now; "
            "give another --output, or the prompts it began with"
        )
    return sum(table["kept"].to_pylist())

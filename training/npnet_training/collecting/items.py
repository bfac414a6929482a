"""The work cut into items: each becomes one shard, and depends on nothing but the settings and its number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from npnet_training.collecting.settings import CollectSettings
from npnet_training.errors import DatasetError
from npnet_training.pairs.info import PairInfo
from npnet_training.pairs.shard import read_rows, shard_path
from npnet_training.prompts import read_prompts
from npnet_training.storage import listed


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


def shards_there(settings: CollectSettings) -> frozenset[str]:
    """Names of the shards that a dataset has, asked once: a store of objects takes its time to answer."""
    return frozenset(place.name for place in listed(settings.folder / "data", ".parquet"))


def done(settings: CollectSettings, item: Item, info: PairInfo, there: frozenset[str]) -> int | None:
    """How many of the item's pairs are kept, if its shard holds them all; else None.

    The last shard of a dataset holds fewer if `max_prompts` was lower when it was made, and more if higher.

    Raises:
        DatasetError: the shard is damaged, of another dataset, or of other prompts.
    """
    path = shard_path(settings.folder, item.number)
    if path.name not in there:
        return None
    table = read_rows(path, info, whole=settings.check)
    found = list(zip(table["prompt"].to_pylist(), table["seed"].to_pylist(), strict=True))
    wanted = list(zip(item.prompts, item.seeds, strict=True))
    if any(one != other for one, other in zip(found, wanted, strict=False)):
        raise DatasetError(
            f"{path} was collected from other prompts than {settings.prompts} has there now; "
            "give another --output, or the prompts it began with"
        )
    return None if len(found) < len(wanted) else sum(table["kept"].to_pylist()[: len(wanted)])

"""From prompts to noise pairs, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from npnet_training.collecting.items import Item, done, items
from npnet_training.collecting.samples import write_samples
from npnet_training.collecting.settings import OF_THE_RUN, CollectSettings
from npnet_training.errors import DatasetError
from npnet_training.models import ModelInfo, load_pipeline
from npnet_training.pairs.info import FILE, PairInfo
from npnet_training.pairs.shard import Pairs, shard_path, write_pairs
from npnet_training.sampling import Denoiser, draw_noise, redenoise, sample_images
from npnet_training.scorers import SelectionRule, load_scorer, score_all
from npnet_training.settings import differences
from npnet_training.storage import exists, is_free

if TYPE_CHECKING:
    from npnet_training.collecting.cluster import RayPool


@dataclass(frozen=True)
class Progress:
    """After a shard: pairs made and kept in all; pairs and images made in this run, and its seconds."""

    pairs: int
    kept: int
    new: int
    images: int
    seconds: float


class Collector:
    """A pipeline and its scorers, ready to make pairs.

    Args:
        settings: see there.
        model: where to load the model from, if that name means nothing here; None for `settings.model`.

    Raises:
        ModelError: the model cannot be loaded.
        ScorerError: a scorer cannot.
        SettingsError: the rule is of other scorers.
    """

    def __init__(self, settings: CollectSettings, model: str | None = None) -> None:
        self.rule = SelectionRule.parse(settings.effective_rule, settings.scorers)
        self.settings = settings
        self.pipe: Any
        self.model: ModelInfo
        self.pipe, self.model = load_pipeline(
            model or settings.model, device=settings.device, dtype=getattr(torch, settings.dtype),
            revision=settings.revision, offline=settings.offline,
        )  # fmt: skip
        self.denoiser = Denoiser(self.pipe)
        self.scorers = {
            name: load_scorer(name, device=settings.device, offline=settings.offline)
            for name in settings.scorers
        }

    def info(self) -> PairInfo:
        """What the dataset says of itself."""
        plain = self.settings.model_dump(mode="json", exclude=set(OF_THE_RUN))
        shape, text = self.denoiser.latent_shape, self.denoiser.text_shape
        return PairInfo(self.settings.model, self.model.revision, shape, text, plain)

    def make(self, item: Item) -> tuple[Pairs, list[Any], list[Any]]:
        """The pairs of an item, and the images from the source and the target if there are scorers."""
        settings = self.settings
        conditioning = self.denoiser.encode(item.prompts)
        source = draw_noise(item.seeds, self.denoiser.latent_shape)
        target = redenoise(self.denoiser, source, conditioning, settings.redenoise).cpu().half()
        finite = target.flatten(1).isfinite().all(1).tolist()
        before: dict[str, list[float]] = {}
        after: dict[str, list[float]] = {}
        plain: list[Any] = []
        golden: list[Any] = []
        if self.scorers:

            def images(noise: Tensor) -> list[Any]:
                return sample_images(self.pipe, conditioning, noise, settings.sample, seeds=item.seeds)

            plain, golden = images(source), images(torch.nan_to_num(target.float()))
            before = score_all(self.scorers, item.prompts, plain)
            after = score_all(self.scorers, item.prompts, golden)
        decisions = []
        for row, good in enumerate(finite):
            scores = ({name: values[row] for name, values in arm.items()} for arm in (before, after))
            decisions.append(self.rule.decide(*scores) if good else (False, "not finite"))
        pairs = Pairs(
            range(item.first, item.first + len(item.prompts)), item.prompts, item.seeds, target,
            [kept for kept, _ in decisions], [reason for _, reason in decisions], before, after,
        )  # fmt: skip
        return pairs, plain, golden

    def collect(self, item: Item) -> int:
        """Make and write an item; how many of its pairs are kept."""
        pairs, plain, golden = self.make(item)
        shown = self.settings.thumbnails - item.first
        if shown > 0 and plain:
            write_samples(self.settings.folder, pairs, plain[:shown], golden[:shown])
        # Last: what has a shard is done.
        write_pairs(shard_path(self.settings.folder, item.number), pairs, self.info())
        return sum(pairs.kept)

    def collect_all(self, todo: Iterator[Item]) -> Iterator[tuple[Item, int]]:
        """Collect items one after the other; each with its number of kept pairs."""
        for item in todo:
            yield item, self.collect(item)


def collect(
    settings: CollectSettings, report: Callable[[Progress], None] = lambda progress: None
) -> Progress:
    """Make the dataset, or what is missing of it.

    Args:
        settings: see there.
        report: called after every shard.

    Raises:
        DatasetError: the folder holds another dataset or cannot be written.
        TrainingError: a model, scorer or prompt is wrong.
    """
    began = time.perf_counter()
    next(items(settings))  # prompts that cannot be read end it before a model is loaded or a folder made
    pairs = kept = new = 0

    def todo(info: PairInfo) -> Iterator[Item]:
        nonlocal pairs, kept
        for item in items(settings):
            count = done(settings, item, info)
            if count is None:
                yield item
            else:
                pairs, kept = pairs + len(item.prompts), kept + count

    def progress() -> Progress:
        images = 2 * new if settings.scorers else 0
        return Progress(pairs, kept, new, images, time.perf_counter() - began)

    with _workers(settings) as workers:
        info = workers.info()
        _begin(settings, info)
        for item, count in workers.collect_all(todo(info)):
            pairs, kept, new = pairs + len(item.prompts), kept + count, new + len(item.prompts)
            report(progress())
    return progress()


def _workers(settings: CollectSettings) -> AbstractContextManager[Collector | RayPool]:
    if settings.ray is None:
        return nullcontext(Collector(settings))
    from npnet_training.collecting.cluster import RayPool

    return RayPool(settings)


def _begin(settings: CollectSettings, info: PairInfo) -> None:
    folder = settings.folder
    if exists(folder / FILE):
        found = PairInfo.read(folder)
        if not settings.resume:
            raise DatasetError(f"{folder} holds a dataset: go on with --resume, or give another --output")
        if found != info:
            wrong = differences(_flat(found), _flat(info))
            raise DatasetError(f"{folder} was collected with other settings:\n  " + "\n  ".join(wrong))
        return
    if not is_free(folder):
        raise DatasetError(f"{folder} exists and is no dataset of noise pairs: give another --output")
    try:
        info.write(folder)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be written ({error})") from error


def _flat(info: PairInfo) -> dict[str, Any]:
    values = {**vars(info), **info.settings}
    del values["settings"]
    return values

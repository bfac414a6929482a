"""A pipeline and its scorers at work: an item of prompts and seeds in, a shard of noise pairs out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.integrations.diffusers.latent_space import latent_space_of
from npnet_training.collecting.items import Item
from npnet_training.collecting.samples import write_samples
from npnet_training.collecting.settings import OF_THE_RUN, CollectSettings
from npnet_training.models import ModelInfo, load_pipeline
from npnet_training.pairs.info import PairInfo
from npnet_training.pairs.shard import Pairs, shard_path, write_pairs
from npnet_training.sampling import Conditioning, Denoiser, draw_noise, redenoise, sample_images
from npnet_training.scorers import SelectionRule, load_scorer, score_all


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
        if settings.targets:
            # A scheduler that cannot be inverted is refused before anything is made.
            _ = self.denoiser.schedule
        self.scorers = {
            name: load_scorer(name, device=settings.device, offline=settings.offline)
            for name in settings.scorers
        }

    def info(self) -> PairInfo:
        """What the dataset says of itself."""
        own, model = self.denoiser, self.model
        recorded = _recorded(self.settings, own)
        space = latent_space_of(self.pipe)
        return PairInfo(
            self.settings.model, model.revision, self.shape_of(0), own.text_shape, recorded, texts=own.texts,
            latent_space=None if space is None else space.to_dict(),
        )  # fmt: skip

    def shape_of(self, batch: int) -> tuple[int, int, int]:
        """(C, H, W) of the noise of a batch, by its number."""
        return self.denoiser.shape_for(self.settings.size_of(batch))

    def make(self, item: Item) -> tuple[Pairs, list[Any], list[Any]]:
        """The pairs of an item, and the images from the source and the target if there are scorers."""
        settings = self.settings
        source = draw_noise(item.seeds, self.shape_of(item.number))
        conditioning = self.denoiser.encode(item.prompts) if settings.targets else None
        target = self.target_of(source, item, conditioning).cpu().half()
        finite = target.flatten(1).isfinite().all(1).tolist()
        before: dict[str, list[float]] = {}
        after: dict[str, list[float]] = {}
        plain: list[Any] = []
        golden: list[Any] = []
        if conditioning is not None and self.scorers:
            plain, golden = (
                sample_images(self.denoiser, conditioning, noise, settings.sample, seeds=item.seeds)
                for noise in (source, torch.nan_to_num(target.float()))
            )
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

    def target_of(self, source: Tensor, item: Item, conditioning: Conditioning | None) -> Tensor:
        """Golden noise of an item's source noise (B, C, H, W), or itself if no targets are wanted."""
        if conditioning is None:
            return source
        return redenoise(self.denoiser, source, conditioning, self.settings.redenoise)

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


def _recorded(settings: CollectSettings, denoiser: Denoiser) -> dict[str, Any]:
    """What the pairs depend on; of settings that datasets of old did not have, what differs from theirs."""
    plain = settings.model_dump(mode="json", exclude=set(OF_THE_RUN))
    weight = settings.redenoise.weight_for(denoiser) if settings.targets else None
    plain["redenoise"]["weight"] = weight
    if weight == "guidance":
        for name in ("weight", "text_mix", "inversion_text_mix"):
            del plain["redenoise"][name]
    for name, was in (("sizes", []), ("targets", True)):
        if plain[name] == was:
            del plain[name]
    return plain

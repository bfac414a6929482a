"""Pairs of noise and the same with a layout written in: `python -m npnet_training.collecting.layouts`."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import Field, field_validator
from torch import Tensor

from npnet_training.collecting.collector import Collector
from npnet_training.collecting.items import Item
from npnet_training.collecting.run import Progress, collect
from npnet_training.collecting.settings import CollectSettings
from npnet_training.command import run
from npnet_training.pairs.info import PairInfo
from npnet_training.sampling import Conditioning
from npnet_training.scenes.grammar import Scene
from npnet_training.scenes.layouts import VARIANTS, LayoutWriter
from npnet_training.scenes.placing import KNOWN_SIZES, SIZES, Size
from npnet_training.settings import Settings, parse_size

EPILOG = """example:
  python -m npnet_training.collecting.layouts --output layouts
"""


class LayoutSettings(Settings):
    """Make noise pairs of the second world whose targets have a right layout written into them.

    Which layout depends on prompt and noise alone, no image is sampled. Train on them with npnet-train.
    """

    output: Path
    """Folder of the dataset."""
    prompts: int = Field(default=40_000, ge=1)
    """Of the training split, a noise each."""
    seed: int = Field(default=4_000_000, ge=0)
    """Of the prompts, and of the first noise."""
    strength: float = Field(default=0.5, gt=0)
    """Of the latents of the image in which the layout is right; the noise's norm is kept."""
    variants: int = Field(default=1, ge=1, le=VARIANTS)
    """Layouts of each scene, of which its noise chooses one; more of them take longer to learn."""
    sizes: tuple[str, ...] = ("64x64", "48x64")
    """Sizes of the images, HEIGHTxWIDTH in pixels, in turns; by default all but one, to be tried later."""
    batch: int = Field(default=100, ge=1)
    """Pairs made at once; a shard of the dataset."""
    resume: bool = False
    """Go on with the dataset in the folder."""

    @field_validator("sizes")
    @classmethod
    def _of_the_world(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [size for size in value if parse_size(size) not in SIZES]:
            raise ValueError(f"expected some of {KNOWN_SIZES}, given {', '.join(unknown)}")
        return value

    @property
    def collecting(self) -> CollectSettings:
        """As `npnet-collect` takes them."""
        return CollectSettings(
            model="scenes", prompts=f"scenes:train:{self.prompts}:{self.seed}", output=self.output,
            sizes=self.sizes, seed=self.seed, targets=False, batch=self.batch, resume=self.resume,
        )  # fmt: skip


class LayoutCollector(Collector):
    """A `Collector` whose targets are written, not re-denoised."""

    def __init__(self, settings: CollectSettings, wanted: LayoutSettings) -> None:
        super().__init__(settings)
        self.wanted = wanted
        self.writers: dict[Size, LayoutWriter] = {}

    def info(self) -> PairInfo:
        """See `Collector.info`: of layouts in place of re-denoising."""
        info = super().info()
        kept = {name: value for name, value in info.settings.items() if name not in ("redenoise", "targets")}
        return replace(
            info, settings={**kept, "strength": self.wanted.strength, "variants": self.wanted.variants}
        )

    def target_of(self, source: Tensor, item: Item, conditioning: Conditioning | None) -> Tensor:
        """See `Collector.target_of`."""
        size = self.settings.size_of(item.number) or SIZES[0]
        if size not in self.writers:
            self.writers[size] = LayoutWriter(self.pipe.vae, size, self.wanted.strength, self.wanted.variants)
        return self.writers[size].write(source, [Scene.parse(prompt) for prompt in item.prompts])


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(LayoutSettings, "python -m npnet_training.collecting.layouts", EPILOG, argv, _work)


def _work(settings: LayoutSettings) -> int:
    progress = collect(settings.collecting, _report, partial(LayoutCollector, wanted=settings))
    print(f"{settings.output}: {progress.pairs} pairs")
    return 0


def _report(progress: Progress) -> None:
    if progress.pairs % 1000 == 0:
        rate = progress.new / progress.seconds
        print(f"{progress.pairs} pairs, {rate:.1f} pairs/s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Settings of `npnet-collect`; the defaults are the paper's recipe where it has one (sections 3.1, 3.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from npnet_training.errors import StorageError
from npnet_training.sampling import RedenoiseSettings, SampleSettings
from npnet_training.scorers import NEVER_CHOOSE
from npnet_training.settings import Settings, parse_size
from npnet_training.storage import Location, locate


class CollectSettings(Settings):
    """Make noise pairs of prompts: re-denoise, sample both images, score them, decide."""

    model: str
    """A diffusers folder, a repository of the hub, a registered model, or an embedded one: shapes, scenes."""
    prompts: str
    """File of prompts (text, .csv, .tsv, .json, .jsonl), hub:OWNER/DATASET, or of an embedded model
    shapes:train:COUNT[:SEED], scenes:train:COUNT[:SEED]."""
    output: Path | str
    """Folder of the dataset, or a URL of fsspec such as s3://BUCKET/FOLDER."""
    revision: str | None = None
    """Commit, branch or tag of the model on the hub."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Use at most this many prompts."""
    seeds: int = Field(default=1, ge=1)
    """Noises for each prompt."""
    sizes: tuple[str, ...] = ()
    """Sizes of the images, HEIGHTxWIDTH in pixels, in turns; the model's own by default."""
    seed: int = Field(default=0, ge=0)
    """Of the first noise; every later one has the next number."""
    targets: bool = True
    """Make a target of every noise; without, the dataset is of prompts and noises, to train by reward."""
    redenoise: RedenoiseSettings = RedenoiseSettings()
    """How the target is made."""
    sample: SampleSettings = SampleSettings()
    """How the images that are scored are made."""
    scorers: tuple[str, ...] = ()
    """Judges of the images; none makes no image and keeps every pair."""
    rule: str | None = None
    """Which pairs are kept: 'keep all', or 'NAME rises [by M]', 'NAME holds', 'NAME reaches V', joined by
    'and'; by default every score must rise."""
    batch: int = Field(default=16, ge=1)
    """Pairs made at once; a shard of the dataset."""
    device: str = "cpu"
    """Where to run."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the model's weights."""
    thumbnails: int = Field(default=0, ge=0)
    """Keep the images of this many first pairs, and a page that shows them."""
    resume: bool = False
    """Go on with the dataset in the folder."""
    check: bool = True
    """Read all that is counted as done, to the last checksum; without, only of which prompts it is."""
    ray: str | None = None
    """Run on Ray: 'local', 'auto' for the cluster this machine is in, or an address."""
    workers: int = Field(default=1, ge=1)
    """Ray actors, each with a pipeline of its own and one CPU core."""
    gpus: float = Field(default=0, ge=0)
    """GPUs for each actor."""
    offline: bool = False
    """Take models from the hub's cache only."""
    dry_run: bool = False
    """Make one batch, write nothing, say how long and how large the whole would be."""
    gpu: str | None = None
    """With dry_run: make nothing, load no weights, and estimate it for a GPU by name: h100, rtx4090, ..."""

    @field_validator("output")
    @classmethod
    def _known(cls, value: Path | str) -> Path | str:
        try:
            place = locate(value)
        except StorageError as error:
            raise ValueError(str(error)) from error
        return place if isinstance(place, Path) else place.url

    @field_validator("scorers")
    @classmethod
    def _may_select(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if judging_only := NEVER_CHOOSE & set(value):
            raise ValueError(f"{', '.join(judging_only)} judges only, so that it stays independent")
        return value

    @field_validator("sizes")
    @classmethod
    def _are_sizes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for size in value:
            parse_size(size)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> CollectSettings:
        if self.ray is None and (self.workers > 1 or self.gpus):
            raise ValueError(
                "workers and gpus are those of Ray: add --ray local, --ray auto or --ray ADDRESS"
            )
        if self.gpu is not None and not self.dry_run:
            raise ValueError("gpu names a GPU for an estimate: add --dry-run")
        if not self.targets and self.scorers:
            raise ValueError("scorers judge the images of noise and target: leave out scorers, or no-targets")
        if self.gpus and self.device == "cpu":
            raise ValueError(f"gpus {self.gpus:g} would stand idle on the device cpu: add --device cuda")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus must be a whole number or below 1, given {self.gpus:g}")
        return self

    def size_of(self, batch: int) -> tuple[int, int] | None:
        """Of the images of a batch, by its number; None for the model's own."""
        return parse_size(self.sizes[batch % len(self.sizes)]) if self.sizes else None

    @property
    def folder(self) -> Location:
        """Where `output` is."""
        return locate(self.output)

    @property
    def effective_rule(self) -> str:
        """The rule, or its default."""
        return self.rule or ("all rises" if self.scorers else "keep all")


OF_THE_RUN = frozenset(
    {
        "output",
        "max_prompts",
        "device",
        "thumbnails",
        "resume",
        "check",
        "ray",
        "workers",
        "gpus",
        "offline",
        "dry_run",
        "gpu",
    }
)
"""Settings that a pair does not depend on; they may differ when a dataset is continued."""

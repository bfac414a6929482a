"""Settings of `npnet-evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from npnet_training.sampling import RedenoiseSettings, SampleSettings
from npnet_training.settings import Settings, parse_size


class JudgedImagesSettings(Settings):
    """What every command asks that makes images of prompts and judges them."""

    model: str
    """A diffusers folder, a repository of the hub, a registered model, or an embedded one: shapes, scenes."""
    prompts: str
    """File of prompts (text, .csv, .jsonl such as GenEval's), hub:OWNER/DATASET, or of an embedded model
    shapes:held-out:COUNT, scenes:held-out:COUNT."""
    output: Path
    """Folder of the results."""
    scorers: tuple[str, ...] = Field(min_length=1)
    """Judges of the images."""
    revision: str | None = None
    """Commit, branch or tag of the model on the hub."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Use at most this many prompts."""
    size: str | None = None
    """Of the images, HEIGHTxWIDTH in pixels; the model's own by default."""
    seed: int = Field(default=1_000_000, ge=0)
    """Of the first noise; far from those that pairs are collected from."""
    redenoise: RedenoiseSettings = RedenoiseSettings()
    """How noise is re-denoised."""
    sample: SampleSettings = SampleSettings()
    """How images are made, from every noise."""
    device: str = "cpu"
    """Where to run."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the model's weights."""
    resume: bool = False
    """Go on with what is in the folder."""
    offline: bool = False
    """Take models from the hub's cache only."""
    dry_run: bool = False
    """Make one batch, write nothing, say how long the whole would take."""

    @field_validator("size")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value)
        return value


class EvaluateSettings(JudgedImagesSettings):
    """Compare arms - plain noise, golden noise, re-denoised noise, best of N seeds - on prompts and seeds.

    Several models, --model a,b,c, are evaluated one after the other, each in a folder of its own, and
    compared in one table.
    """

    arms: tuple[str, ...] = ()
    """What plain noise is compared with: golden:ENGINE_DIR, redenoised, best-of-N:SCORER. redenoised:guidance
    and redenoised:text-mix say what is turned, in place of --redenoise.weight."""
    seeds: int = Field(default=1, ge=1)
    """Noises for each prompt; two or more show the diversity between them."""
    batch: int = Field(default=16, ge=1)
    """Images made at once; a multiple of seeds."""
    diversity: Literal["pixels", "dino"] = "pixels"
    """Features whose distance between the seeds of a prompt is the diversity: pixels, or DINOv2's."""
    pictures: int = Field(default=12, ge=0)
    """Rows of the grid of pictures."""
    resamples: int = Field(default=10_000, ge=100)
    """Of the bootstrap."""

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateSettings:
        if self.batch % self.seeds:
            raise ValueError(f"batch {self.batch} must be a multiple of seeds {self.seeds}")
        if len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms: the same one twice in {', '.join(self.arms)}")
        return self


OF_THE_RUN = frozenset({"output", "max_prompts", "resume", "offline", "dry_run", "resamples", "device"})
"""Settings that an image does not depend on; they may differ when an evaluation is continued."""

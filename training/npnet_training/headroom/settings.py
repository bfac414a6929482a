"""Settings of `npnet-headroom`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from npnet_training.evaluation.settings import EvaluateSettings
from npnet_training.sampling import RedenoiseSettings, SampleSettings
from npnet_training.settings import Settings


class HeadroomSettings(Settings):
    """Measure what the noise decides in front of a model: how much better the best of some seeds is."""

    model: str
    """A diffusers folder, a repository of the hub, a registered model, or the embedded shapes."""
    prompts: str
    """File of prompts (text, .csv, .jsonl), hub:OWNER/DATASET, or shapes:held-out:COUNT."""
    output: Path
    """Folder of the measurement."""
    scorers: tuple[str, ...] = Field(min_length=1)
    """Judges of the images."""
    seeds: int = Field(default=8, ge=2)
    """Noises for each prompt; the best of up to so many is measured."""
    redenoised: bool = True
    """Also from re-denoised noise, for twice the images."""
    revision: str | None = None
    """Commit, branch or tag of the model on the hub."""
    size: str | None = None
    """Of the images, HEIGHTxWIDTH in pixels; the model's own by default."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Use at most this many prompts."""
    seed: int = Field(default=1_000_000, ge=0)
    """Of the first noise."""
    redenoise: RedenoiseSettings = RedenoiseSettings()
    """How noise is re-denoised."""
    sample: SampleSettings = SampleSettings()
    """How images are made."""
    resamples: int = Field(default=2_000, ge=100)
    """Of the bootstrap over prompts."""
    device: str = "cpu"
    """Where to run."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the model's weights."""
    resume: bool = False
    """Go on with the measurement in the folder."""
    offline: bool = False
    """Take models from the hub's cache only."""
    dry_run: bool = False
    """Make the images of one prompt, write nothing, say how long the whole would take."""

    def evaluation(self) -> EvaluateSettings:
        """The evaluation that makes and judges the images."""
        own = {"redenoised"}
        return EvaluateSettings(
            **self.model_dump(exclude=own), arms=("redenoised",) if self.redenoised else (),
            batch=self.seeds, pictures=0,
        )  # fmt: skip

"""Settings of `npnet-demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from npnet_training.demo.worlds import WORLDS, World
from npnet_training.embedded import WorldName
from npnet_training.settings import WHOLE, Settings


class DemoSettings(Settings):
    """Draw prompts of a world of shapes from plain and from golden noise, and judge the images."""

    output: Path = Path("npnet-demo")
    """Folder to write."""
    world: WorldName = "scenes"
    """scenes: a FLUX of 64x64 pixels, which fails at counting, binding and placement; shapes: a Stable
    Diffusion of 32x32, which fails at shapes."""
    prompts: Annotated[tuple[str, ...], WHOLE] = ("200",)
    """A number of held-out prompts, a file of prompts, or the text of one; may be repeated."""
    seeds: int = Field(default=1, ge=1)
    """Noises for each prompt."""
    seed: int = Field(default=2_000_000, ge=0, lt=2**31)
    """Of the first noise; far from those that networks are trained and evaluated on."""
    model: Literal["main", "weak", "few-step", "both"] = "main"
    """The denoiser: the main one; of scenes the few-step one that was distilled from it; of shapes the main
    one stopped earlier, weak; or both in turn."""
    network: Literal["prompt-attention", "npnet"] = "prompt-attention"
    """Golden-noise network: the one that attends to the prompt, which has learned layouts, or of shapes from
    a reward in front of the weak denoiser; or the paper's, trained on re-denoised pairs of the main one."""
    engine: Literal["onnxruntime", "torch"] = "onnxruntime"
    """What the network is exported to and runs in."""
    steps: int | None = Field(default=None, ge=1, le=1000)
    """Denoising steps; by default 10, of the few-step model 4."""
    guidance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Classifier-free guidance; up to 1 there is none. By default 3 for the main denoiser of scenes, and none
    elsewhere."""
    compare: Literal["best-of-2"] | None = None
    """Also the better of two plain images of each prompt, as the judge sees it, at twice the cost."""
    batch: int = Field(default=50, ge=1)
    """Images made at once."""
    pictures: int = Field(default=12, ge=1)
    """Prompts in the PNG grid: the first ones."""
    resamples: int = Field(default=10_000, ge=100)
    """Of the bootstrap."""
    model_dir: Path | None = None
    """Folder of the model and its golden-noise weights; by default the bundled one."""
    force: bool = False
    """Replace the folder of an earlier demo."""

    @property
    def denoisers(self) -> tuple[str, ...]:
        """Names of the denoisers to run."""
        return tuple(self.about.model.denoisers) if self.model == "both" else (self.model,)

    @property
    def about(self) -> World:
        """The world that is shown."""
        return WORLDS[self.world]

    @property
    def models(self) -> Path:
        """Folder of the models that are shown."""
        return self.model_dir or self.about.model.folder

    def steps_of(self, denoiser: str) -> int:
        """Denoising steps of one of the denoisers."""
        return self.steps or self.about.model.denoisers[denoiser].steps

    def guidance_of(self, denoiser: str) -> float:
        """Guidance of one of the denoisers."""
        return self.about.model.denoisers[denoiser].guidance if self.guidance is None else self.guidance

    @model_validator(mode="after")
    def _of_the_world(self) -> DemoSettings:
        known = tuple(self.about.model.denoisers)
        if self.model != "both" and self.model not in known:
            raise ValueError(f"model: expected {', '.join(known)} or both in the world {self.world}")
        return self

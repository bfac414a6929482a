"""Settings of `npnet-headroom`."""

from __future__ import annotations

from pydantic import Field

from npnet_training.evaluation.settings import EvaluateSettings, JudgedImagesSettings


class HeadroomSettings(JudgedImagesSettings):
    """Measure what the noise decides in front of a model: how much better the best of some seeds is."""

    seeds: int = Field(default=8, ge=2)
    """Noises for each prompt; the best of up to so many is measured. A prompt is a batch."""
    redenoised: bool = True
    """Also from re-denoised noise, for twice the images."""
    resamples: int = Field(default=2_000, ge=100)
    """Of the bootstrap over prompts."""

    def evaluation(self) -> EvaluateSettings:
        """The evaluation that makes and judges the images."""
        return EvaluateSettings(
            **self.model_dump(exclude={"redenoised"}), arms=("redenoised",) if self.redenoised else (),
            batch=self.seeds, pictures=0,
        )  # fmt: skip

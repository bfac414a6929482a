"""Settings of the losses that make images: how they sample, and what they compare or reward."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from npnet_training.settings import Settings


class SamplerSettings(Settings):
    """How latents are made from golden noise while training, by the own call of the dataset's model."""

    steps: int = Field(default=4, ge=1)
    """Denoising steps."""
    guidance: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """As the pipeline takes it; where two predictions are mixed, 1 for none, at half the cost."""
    gradient_steps: int | None = Field(default=None, ge=1)
    """Let gradients through the last so many steps only, and past the others; None for all."""
    checkpointing: bool = True
    """Keep little of each block of the networks and compute it again for the gradient, for a third more
    time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model's weights."""

    @model_validator(mode="after")
    def _gradient_steps_fit(self) -> SamplerSettings:
        if self.gradient_steps is not None and self.gradient_steps > self.steps:
            raise ValueError(f"gradient_steps {self.gradient_steps} must be at most steps {self.steps}")
        return self


class ImageLossSettings(SamplerSettings):
    """The image from golden noise against a reference image of the same prompt."""

    space: Literal["latents", "pixels"] = "latents"
    """What is compared: clean latents, or decoded images."""
    reference: Literal["target", "source"] = "target"
    """The noise the reference is sampled from: the pair's target x'_T, or its source x_T, which with a
    reference_guidance above guidance is NoiseRefine's objective."""
    reference_guidance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Guidance of the reference; None for the same."""
    reference_steps: int | None = Field(default=None, ge=1)
    """Denoising steps of the reference; None for the same."""
    noise_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the mean squared difference between golden noise and the reference's noise."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> ImageLossSettings:
        same = (self.reference_guidance in (None, self.guidance)) and (
            self.reference_steps in (None, self.steps)
        )
        if self.reference == "source" and same:
            raise ValueError(
                "reference source: the reference would be the image of the unchanged noise; give another "
                "reference_guidance or reference_steps"
            )
        return self


class RewardLossSettings(SamplerSettings):
    """Rewards of the image from golden noise, and a penalty that holds the noise near N(0, I)."""

    names: tuple[str, ...] = ()
    """Rewards: clipscore, pickscore, shapes, scenes, or an entry point of the group npnet.rewards."""
    weights: tuple[float, ...] = ()
    """One for each reward; 1 each by default."""
    penalty: Literal["l2", "norm"] = "l2"
    """l2: half the mean square of the change (HyperNoise); norm: how unlikely the noise's norm is (ReNO)."""
    penalty_weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Of the penalty; None for what its authors use: 1 for l2, 0.01 for norm."""
    anchor_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Of the mean absolute difference between the image and the one that the unchanged noise gives, both
    averaged over a coarse grid. It keeps what a seed decides beside the prompt, such as the background;
    without it a reward that likes contrast makes all backgrounds alike. Costs an image without a gradient."""
    anchor_cells: int = Field(default=4, ge=1)
    """Rows and columns of that grid."""

    of_models: Literal["averaged", "drawn"] = "averaged"
    """Of several models: the mean of their rewards, or in every batch that of one, at the cost of one."""

    @model_validator(mode="after")
    def _weights_fit(self) -> RewardLossSettings:
        if self.weights and len(self.weights) != len(self.names):
            raise ValueError(f"weights: expected one for each of {len(self.names)} rewards")
        return self

"""Settings of the study."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from npnet_training.embedded import WorldName
from npnet_training.settings import Settings
from npnet_training.study.conditions import CONDITIONS


class StudySettings(Settings):
    """Compare trained networks, re-denoised noise and best-of-N on held-out prompts of a world of shapes."""

    networks: Path
    """Folder of checkpoints NAME.safetensors, LoRAs of golden noise among them; npnet.safetensors is the one
    trained the paper's way."""
    output: Path
    """Folder of the study: an evaluation for each condition, study.json, study.md and study.png."""
    world: WorldName = "shapes"
    """Whose model."""
    conditions: tuple[str, ...] = ()
    """Which conditions to measure; all by default."""
    prompts: int = Field(default=1000, ge=1)
    """Held-out prompts of each condition; with several seeds a prompt, as many fewer."""
    best: str = "prompt-attention"
    """The network shown where not all are, and whose prompts are exchanged."""
    few_step: str | None = None
    """Folder of the few-step model of shapes, as python -m npnet_training.distill writes it."""
    batch: int = Field(default=48, ge=1)
    """Images made at once."""
    resamples: int = Field(default=10_000, ge=100)
    """Of the bootstrap."""
    resume: bool = False
    """Go on with the study in the folder."""

    @model_validator(mode="after")
    def _known(self) -> StudySettings:
        known = CONDITIONS[self.world]
        if unknown := [name for name in self.conditions if name not in known]:
            raise ValueError(f"conditions: expected some of {', '.join(known)}; given {', '.join(unknown)}")
        return self

    @property
    def measured(self) -> tuple[str, ...]:
        """The conditions that are measured."""
        return self.conditions or tuple(CONDITIONS[self.world])

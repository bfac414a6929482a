"""The learning rate of a step: a function of the step alone, so there is no scheduler state to store."""

from __future__ import annotations

import math

from npnet_training.training.settings import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """Rate of a step counted from 0: linear warm-up, then constant, or half a cosine (arXiv 1608.03983)."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return settings.learning_rate * (settings.final_share + (1 - settings.final_share) * share)

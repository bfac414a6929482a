"""Every error this package raises on purpose.

Each message says what was expected, what was given, and what to change.
"""

from __future__ import annotations

from npnet_runtime.errors import NPNetError


class TrainingError(NPNetError):
    """Base of all errors raised by `npnet_training`."""


class SettingsError(TrainingError, ValueError):
    """Settings that are unknown, of the wrong type, out of range, or contradict each other."""


class ModelError(TrainingError):
    """A text-to-image model that cannot be loaded, or whose pipeline, scheduler or prediction is unknown."""


class PromptsError(TrainingError, ValueError):
    """A file of prompts that is missing, malformed or empty."""


class DatasetError(TrainingError):
    """A dataset of noise pairs that is missing, damaged, of other settings, or without a usable pair."""


class StorageError(TrainingError, OSError):
    """A place of files that is unknown, needs a package, or cannot be reached."""


class ScorerError(TrainingError):
    """A scorer that is unknown, cannot be loaded, or gives no number for an image."""


class RewardError(TrainingError):
    """A reward that is unknown, cannot be loaded, or gives no numbers with a gradient."""


class TrainError(TrainingError):
    """A training run that cannot start, go on, or be resumed."""


class EvaluateError(TrainingError):
    """An evaluation that cannot start or go on."""


class StudyError(TrainingError):
    """A study whose networks are missing or unknown."""


class DemoError(TrainingError):
    """A demo that cannot start, or whose results cannot be written."""

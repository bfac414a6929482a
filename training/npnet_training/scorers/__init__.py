"""Judges of images: one protocol, several models, and rules that decide by their scores."""

from npnet_training.scorers.registry import NEVER_CHOOSE, Scorer, load_scorer, score_all, scorer_names
from npnet_training.scorers.rules import SelectionRule

__all__ = ["NEVER_CHOOSE", "Scorer", "SelectionRule", "load_scorer", "score_all", "scorer_names"]

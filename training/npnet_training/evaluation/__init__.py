"""`npnet-evaluate`: plain noise against golden noise and its rivals, on the same prompts and seeds."""

from npnet_training.evaluation.arms import Arm
from npnet_training.evaluation.evaluator import Evaluator, evaluate
from npnet_training.evaluation.results import Results
from npnet_training.evaluation.settings import EvaluateSettings
from npnet_training.evaluation.statistics import Paired, paired

__all__ = ["Arm", "EvaluateSettings", "Evaluator", "Paired", "Results", "evaluate", "paired"]

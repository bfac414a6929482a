"""`npnet-collect`: prompts to noise pairs."""

from npnet_training.collecting.collector import Collector
from npnet_training.collecting.run import collect
from npnet_training.collecting.settings import CollectSettings

__all__ = ["CollectSettings", "Collector", "collect"]

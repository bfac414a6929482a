"""`npnet-demo`: plain against golden noise in an embedded world, judged exactly, without a network."""

from npnet_training.demo.demonstration import Demonstration, demonstrate
from npnet_training.demo.settings import DemoSettings

__all__ = ["DemoSettings", "Demonstration", "demonstrate"]

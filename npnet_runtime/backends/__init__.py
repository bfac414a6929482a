"""What runs the graphs of a bundle, one module an engine; what is made of their results is elsewhere."""

from npnet_runtime.backends.base import Backend
from npnet_runtime.backends.machine import Machine
from npnet_runtime.backends.selection import Candidate, load_backend, select

__all__ = ["Backend", "Candidate", "Machine", "load_backend", "select"]

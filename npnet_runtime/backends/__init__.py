"""Back ends run the two learned parts of NPNet for an engine bundle."""

from npnet_runtime.backends.base import Backend
from npnet_runtime.backends.machine import Machine
from npnet_runtime.backends.selection import Candidate, load_backend, select

__all__ = ["Backend", "Candidate", "Machine", "load_backend", "select"]

"""Errors of the exporter."""

from npnet_runtime.errors import NPNetError


class ExportError(NPNetError):
    """Settings that cannot be exported, a missing package, or a graph that fails its checks."""


class ParityError(ExportError):
    """The engine was built but does not agree with the float32 PyTorch network."""

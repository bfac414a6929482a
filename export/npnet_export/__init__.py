"""Exporter: a checkpoint goes in, a checked engine bundle comes out."""

from npnet_export.build import ExportSettings, export
from npnet_export.errors import ExportError, ParityError

__all__ = ["ExportError", "ExportSettings", "ParityError", "export"]

"""Classes by name: built in, or from other packages by an entry point group."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any


def plugin_names(built_in: Mapping[str, str], group: str) -> list[str]:
    """Names of all there are, sorted."""
    return sorted({*built_in, *(point.name for point in entry_points(group=group))})


def import_plugin(name: str, built_in: Mapping[str, str], group: str) -> Any:
    """The class of one of these names; what is built in wins.

    Args:
        name: one of `plugin_names`.
        built_in: `module:attribute` by name.
        group: of the entry points.

    Raises:
        ImportError, AttributeError: it cannot be imported.
    """
    if name in built_in:
        module, _, attribute = built_in[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    return {point.name: point for point in entry_points(group=group)}[name].load()

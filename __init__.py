"""ComfyUI's door: a clone of this repository in `custom_nodes` is a folder of nodes. In no wheel.

The packages lie in folders called `kernels` and `export`, which must not be found under these names:
`kernels` is Hugging Face's. So they are found under their own, and nothing else of this folder is.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

PACKAGES = {
    "npnet_kernels": "kernels/npnet_kernels",
    "npnet_runtime": "npnet_runtime",
    "npnet_export": "export/npnet_export",
}


class Finder:
    """Finds the packages of this clone, before those that pip may have installed."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if name not in PACKAGES:
            return None
        folder = Path(__file__).parent / PACKAGES[name]
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


if not any(getattr(finder, "__qualname__", None) == "Finder" for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder)

from npnet_runtime.integrations.comfyui import (  # noqa: E402
    NODE_CLASS_MAPPINGS,
    NODE_DISPLAY_NAME_MAPPINGS,
)

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

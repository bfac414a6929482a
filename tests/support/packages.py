"""Where the import packages lie in the checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {  # name -> the folder it is in
    "npnet_kernels": ROOT / "kernels",
    "npnet_runtime": ROOT,
    "npnet_export": ROOT / "export",
    "npnet_training": ROOT / "training",
}

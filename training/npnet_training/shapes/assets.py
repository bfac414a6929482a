"""The embedded text-to-image model: its files, checked before they are opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from npnet_runtime.errors import PackagedError
from npnet_runtime.files import sha256
from npnet_runtime.packaged import LISTING as MANIFEST
from npnet_runtime.packaged import check_files
from npnet_training.errors import ModelError

FOLDER = Path(__file__).parent / "assets"
LICENCE = "Apache-2.0"


class ShapesAssetsError(ModelError):
    """Files of the embedded model that are missing or altered."""


def write_manifest(folder: Path) -> None:
    """List every file of a folder with its size and sha256."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    document = {"licence": LICENCE, "made_by": "python -m npnet_training.shapes.build", "files": files}
    (folder / MANIFEST).write_text(json.dumps(document, indent=1) + "\n")


def check(folder: Path = FOLDER) -> dict[str, Any]:
    """Compare every file with the manifest.

    Returns:
        The manifest: `licence`, `made_by`, and `files` by path.

    Raises:
        ShapesAssetsError: one is missing or altered.
    """
    if not folder.is_dir():
        raise ShapesAssetsError(
            f"{folder}: expected the embedded model, found no such folder; make one with "
            "python -m npnet_training.shapes.build --output DIR, which takes about an hour"
        )
    try:
        return check_files(folder)
    except PackagedError as error:
        raise ShapesAssetsError(_broken(folder, error)) from error


def load_pipeline(
    *,
    unet: str = "main",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    folder: Path = FOLDER,
) -> Any:
    """The embedded StableDiffusionPipeline; needs no network.

    Args:
        unet: `main`, or `weak`: the same run stopped earlier.
        device: where to.
        dtype: of its weights, float16 on disk.
        folder: as `python -m npnet_training.shapes.build` writes it.

    Raises:
        ShapesAssetsError: a file is missing or altered.
        ModelError: diffusers is missing.
    """
    check(folder)
    try:
        from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    except ImportError as error:
        raise ModelError(f"shapes needs diffusers ({error}): pip install 'npnet-runtime[train]'") from error
    options: dict[str, Any] = {"torch_dtype": dtype, "local_files_only": True, "use_safetensors": True}
    if unet != "main":
        options["unet"] = UNet2DConditionModel.from_pretrained(folder / f"unet-{unet}", **options)
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, **options).to(device)


def _broken(folder: Path, error: PackagedError) -> str:
    if folder == FOLDER:
        way = "reinstall with pip install --force-reinstall npnet-runtime"
    else:
        listing = f"npnet_training.shapes.assets.write_manifest(Path({str(folder)!r}))"
        way = f"if you changed it, list it again with {listing}"
    return (
        f"the embedded model is incomplete: {error}; {way}, or make it again with "
        "python -m npnet_training.shapes.build --output DIR"
    )

"""The embedded text-to-image model: its files, checked before they are opened."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from npnet_runtime.errors import PackagedError
from npnet_runtime.files import sha256
from npnet_runtime.integrations.diffusers.loading import dtype_option
from npnet_runtime.weights.packaged import LISTING as MANIFEST
from npnet_runtime.weights.packaged import check_files
from npnet_training.errors import ModelError

FOLDER = Path(__file__).parent / "assets"
LICENCE = "Apache-2.0"
_PIPELINE = {"model_index.json", "unet", "vae", "text_encoder", "tokenizer", "scheduler"}


class ShapesAssetsError(ModelError):
    """Files of the embedded model that are missing, altered, not listed, or cannot be loaded."""


def write_manifest(folder: Path) -> None:
    """List every file of a folder with its size and sha256."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in sorted(_contents(folder), key=Path)
    }
    document = {"licence": LICENCE, "made_by": "python -m npnet_training.shapes.build", "files": files}
    (folder / MANIFEST).write_text(json.dumps(document, indent=1) + "\n")


def check(folder: Path = FOLDER, unets: Iterable[str] = ("main",)) -> dict[str, Any]:
    """Compare every file with the manifest, which is to list all there are.

    Args:
        folder: of the model.
        unets: the denoisers that it must have.

    Returns:
        The manifest: `licence`, `made_by`, and `files` by path.

    Raises:
        ShapesAssetsError: a file is missing, altered or not listed, or the manifest lacks what a model has.
    """
    if not folder.is_dir():
        raise ShapesAssetsError(
            f"{folder}: expected the embedded model, found no such folder; make one with "
            "python -m npnet_training.shapes.build --output DIR, which takes about an hour"
        )
    try:
        listing = check_files(folder)
    except PackagedError as error:
        raise ShapesAssetsError(_broken(folder, error)) from error
    if not isinstance(listing.get("licence"), str):
        raise ShapesAssetsError(_broken(folder, f"{folder / MANIFEST} names no licence"))
    # Loading opens what it finds: an index of shards, say, in place of the listed weights.
    if strange := _contents(folder) - set(listing["files"]):
        raise ShapesAssetsError(_broken(folder, f"{folder / min(strange)}: {MANIFEST} lists no such file"))
    expected = _PIPELINE | {_subfolder(unet) for unet in unets}
    if missing := expected - {name.partition("/")[0] for name in listing["files"]}:
        raise ShapesAssetsError(_broken(folder, f"{folder / MANIFEST} lists no {', '.join(sorted(missing))}"))
    return listing


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
        ShapesAssetsError: as `check` does, or diffusers cannot load it.
        ModelError: diffusers is missing.
    """
    check(folder, [unet])
    try:
        from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    except ImportError as error:
        raise ModelError(f"shapes needs diffusers ({error}): pip install 'npnet-runtime[train]'") from error
    options: dict[str, Any] = {**dtype_option(dtype), "local_files_only": True, "use_safetensors": True}
    try:
        if unet != "main":
            options["unet"] = UNet2DConditionModel.from_pretrained(folder / _subfolder(unet), **options)
        pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, **options)
    except (OSError, ValueError) as error:
        raise ShapesAssetsError(_broken(folder, f"{folder}: diffusers cannot load it: {error}")) from error
    return pipe.to(device)


def _subfolder(unet: str) -> str:
    return "unet" if unet == "main" else f"unet-{unet}"


def _contents(folder: Path) -> set[str]:
    """All there is in a folder but its manifest; a linked folder is one of them, as nobody looks into it."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.as_posix() for path in paths if path != Path(MANIFEST) and "__pycache__" not in path.parts}


def _broken(folder: Path, error: object) -> str:
    if folder == FOLDER:
        way = "reinstall with pip install --force-reinstall npnet-runtime"
    else:
        listing = f"npnet_training.shapes.assets.write_manifest(Path({str(folder)!r}))"
        way = f"if you changed it, list it again with {listing}"
    return (
        f"the embedded model is incomplete: {error}; {way}, or make it again with "
        "python -m npnet_training.shapes.build --output DIR"
    )

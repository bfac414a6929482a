"""Weights that come with a package of this project, found and checked without importing that package."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from npnet_runtime.errors import PackagedError
from npnet_runtime.files import sha256

LISTING = "assets.json"


@dataclass(frozen=True)
class PackagedModel:
    """A text-to-image model and the weights trained for it, both bundled. Their checkpoint says its shapes.

    Args:
        name: what `npnet-export --model` takes.
        package: the import package that carries them.
        folder: of the text-to-image model, within the package; its `assets.json` lists every file.
        filename: the checkpoint, within that folder.
        base_model: name of the text-to-image model.
        pipeline_class: its class in diffusers.
        guidance_scale: classifier-free guidance the weights were trained and evaluated with.
    """

    name: str
    package: str
    folder: str
    filename: str
    base_model: str
    pipeline_class: str
    guidance_scale: float

    @property
    def description(self) -> str:
        """Where the weights are, in words."""
        return f"{self.folder}/{self.filename} of the package {self.package}"

    def path(self) -> Path:
        """The checkpoint, after its size and sha256 were compared with the listing.

        Raises:
            PackagedError: the package or the file is missing, or the file was altered.
        """
        folder = self.root()
        check_files(folder, [self.filename])
        return folder / self.filename

    def root(self) -> Path:
        """The folder of the text-to-image model.

        Raises:
            PackagedError: the package is missing.
        """
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise PackagedError(
                f"--model {self.name}: expected the package {self.package}, which carries its weights; it is "
                "not installed: pip install npnet-runtime"
            )
        return Path(spec.submodule_search_locations[0], self.folder)


_SHAPES: dict[str, Any] = {
    "package": "npnet_training",
    "folder": "shapes/assets",
    "base_model": "shapes",
    "pipeline_class": "StableDiffusionPipeline",
    "guidance_scale": 1.0,
}
_SCENES: dict[str, Any] = {
    "package": "npnet_training",
    "folder": "scenes/assets",
    "base_model": "scenes",
    "pipeline_class": "FluxPipeline",
    "guidance_scale": 3.0,
}
PACKAGED: dict[str, PackagedModel] = {
    model.name: model
    for model in (
        PackagedModel(name="shapes", filename="golden/prompt-attention.safetensors", **_SHAPES),
        PackagedModel(name="shapes-npnet", filename="golden/npnet.safetensors", **_SHAPES),
        PackagedModel(name="scenes", filename="golden/prompt-attention.safetensors", **_SCENES),
        PackagedModel(name="scenes-npnet", filename="golden/npnet.safetensors", **_SCENES),
    )
}


def check_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Compare files with the `assets.json` beside them, which gives the size and sha256 of each.

    Args:
        folder: with the listing.
        names: paths of files within it; None for all that are listed.

    Returns:
        The content of the listing.

    Raises:
        PackagedError: a file is missing, not listed or altered, or there is no readable listing.
    """
    try:
        listing: dict[str, Any] = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        files = listing["files"]
        for name in files if names is None else names:
            if name not in files:
                raise PackagedError(f"{folder / name}: {LISTING} lists no such file")
            expected, path = files[name], folder / name
            if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
                raise PackagedError(
                    f"{path}: it was altered: expected {expected['bytes']} bytes with sha256 "
                    f"{expected['sha256'][:16]}..., given {path.stat().st_size} with {sha256(path)[:16]}..."
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackagedError(f"{folder}: expected files listed in {LISTING} ({error})") from error
    return listing

"""The embedded text-to-image models: their files, checked before they are opened."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from npnet_runtime.errors import PackagedError
from npnet_runtime.files import sha256
from npnet_runtime.integrations.diffusers.loading import dtype_option
from npnet_runtime.weights.packaged import LISTING as MANIFEST
from npnet_runtime.weights.packaged import check_files
from npnet_training.errors import ModelError

LICENCE = "Apache-2.0"
MAIN = "main"
WorldName = Literal["shapes", "scenes"]
_PIPELINE = ("model_index.json", "vae", "text_encoder", "tokenizer", "scheduler")


class AssetsError(ModelError):
    """Files of an embedded model that are missing, altered, not listed, or cannot be loaded."""


@dataclass(frozen=True)
class Variant:
    """A denoiser of a model.

    Args:
        folder: of its weights.
        steps: in which it samples where nothing is said.
        guidance: of two predictions, where nothing is said; 1 for none.
        lora: whether they are a LoRA of the main one's, fused when it is loaded.
    """

    folder: str
    steps: int = 10
    guidance: float = 1.0
    lora: bool = False


@dataclass(frozen=True)
class EmbeddedModel:
    """A model of a world of its own, in a folder of diffusers, of which there are several denoisers.

    Args:
        name: the world's.
        pipeline: module and class that load the folder.
        denoisers: by what comes after the name in --model: `main` after none.
        network: module and class of the denoisers.
        parts: what else there is beside those of every pipeline.
        lasts: how long the build takes, in words.
    """

    name: str
    pipeline: tuple[str, str]
    denoisers: Mapping[str, Variant]
    network: tuple[str, str]
    parts: tuple[str, ...] = ()
    lasts: str = "an hour"

    @property
    def folder(self) -> Path:
        """The bundled one."""
        return Path(__file__).parent / self.name / "assets"

    @property
    def made_by(self) -> str:
        """The command that trains it."""
        return f"python -m npnet_training.{self.name}.build"

    @property
    def names(self) -> tuple[str, ...]:
        """What a command's --model takes, one for each denoiser."""
        return tuple(self.name if of == MAIN else f"{self.name}-{of}" for of in self.denoisers)

    def write_manifest(self, folder: Path) -> None:
        """List every file of a folder with its size and sha256."""
        files = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
            for name in sorted(_contents(folder), key=Path)
        }
        document = {"licence": LICENCE, "made_by": self.made_by, "files": files}
        (folder / MANIFEST).write_text(json.dumps(document, indent=1) + "\n")

    def check(self, folder: Path | None = None, denoisers: Iterable[str] = (MAIN,)) -> dict[str, Any]:
        """Compare every file with the manifest, which is to list all there are.

        Args:
            folder: of the model; None for the bundled one.
            denoisers: those that it must have.

        Returns:
            The manifest: `licence`, `made_by`, and `files` by path.

        Raises:
            AssetsError: a file is missing, altered or not listed, or the manifest lacks what a model has.
        """
        folder = folder or self.folder
        if not folder.is_dir():
            raise AssetsError(
                f"{folder}: expected the embedded model {self.name}, found no such folder; make one with "
                f"{self.made_by} --output DIR, which takes about {self.lasts}"
            )
        try:
            listing = check_files(folder)
        except PackagedError as error:
            raise AssetsError(self._broken(folder, error)) from error
        if not isinstance(listing.get("licence"), str):
            raise AssetsError(self._broken(folder, f"{folder / MANIFEST} names no licence"))
        # Loading opens what it finds: an index of shards, say, in place of the listed weights.
        if strange := _contents(folder) - set(listing["files"]):
            raise AssetsError(self._broken(folder, f"{folder / min(strange)}: {MANIFEST} lists no such file"))
        expected = {*_PIPELINE, *self.parts, *(self.denoisers[of].folder for of in denoisers)}
        if missing := expected - {name.partition("/")[0] for name in listing["files"]}:
            lacking = ", ".join(sorted(missing))
            raise AssetsError(self._broken(folder, f"{folder / MANIFEST} lists no {lacking}"))
        return listing

    def load(
        self,
        denoiser: str = MAIN,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        folder: Path | None = None,
    ) -> Any:
        """The embedded pipeline, quiet; needs no network.

        Args:
            denoiser: one of `denoisers`.
            device: where to.
            dtype: of its weights, float16 on disk.
            folder: as the build writes it; None for the bundled one.

        Raises:
            AssetsError: as `check` does, or diffusers cannot load it.
            ModelError: diffusers is missing.
        """
        folder = folder or self.folder
        self.check(folder, {MAIN, denoiser})
        try:
            pipeline, network = (_imported(*where) for where in (self.pipeline, self.network))
        except ImportError as error:
            raise ModelError(
                f"{self.name} needs diffusers ({error}): pip install 'npnet-runtime[train]'"
            ) from error
        options: dict[str, Any] = {**dtype_option(dtype), "local_files_only": True, "use_safetensors": True}
        try:
            variant, own = self.denoisers[denoiser], {}
            if denoiser != MAIN and not variant.lora:
                own[self.denoisers[MAIN].folder] = network.from_pretrained(folder / variant.folder, **options)
            pipe = pipeline.from_pretrained(folder, **options, **own)
            if variant.lora:
                part = getattr(pipe, self.denoisers[MAIN].folder)
                part.load_lora_adapter(folder / variant.folder, use_safetensors=True, local_files_only=True)
                part.fuse_lora()
                part.unload_lora()
        except (OSError, ValueError) as error:
            raise AssetsError(self._broken(folder, f"{folder}: diffusers cannot load it: {error}")) from error
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)

    def _broken(self, folder: Path, error: object) -> str:
        if folder == self.folder:
            way = "reinstall with pip install --force-reinstall npnet-runtime"
        else:
            listing = f"npnet_training.embedded.WORLDS[{self.name!r}].write_manifest(Path({str(folder)!r}))"
            way = f"if you changed it, list it again with {listing}"
        return (
            f"the embedded model is incomplete: {error}; {way}, or make it again with "
            f"{self.made_by} --output DIR"
        )


def embedded_folder(path: Path) -> EmbeddedModel | None:
    """The world whose build wrote a folder; None if none did."""
    try:
        made_by = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["made_by"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((world for world in WORLDS.values() if world.made_by == made_by), None)


def _imported(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _contents(folder: Path) -> set[str]:
    """All there is in a folder but its manifest; a linked folder is one of them, as nobody looks into it."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.as_posix() for path in paths if path != Path(MANIFEST) and "__pycache__" not in path.parts}


SHAPES = EmbeddedModel(
    "shapes",
    ("diffusers", "StableDiffusionPipeline"),
    {MAIN: Variant("unet"), "weak": Variant("unet-weak")},
    ("diffusers", "UNet2DConditionModel"),
)
SCENES = EmbeddedModel(
    "scenes",
    ("npnet_training.scenes.pipeline", "ScenesPipeline"),
    {MAIN: Variant("transformer", guidance=3.0), "few-step": Variant("few-step", 4, lora=True)},
    ("diffusers", "FluxTransformer2DModel"),
    parts=("text_encoder_2", "tokenizer_2"),
    lasts="four hours",
)
WORLDS = {world.name: world for world in (SHAPES, SCENES)}


def find_embedded(name: str) -> tuple[EmbeddedModel, str] | None:
    """A model and its denoiser, of what a command's --model was given; None if it is no embedded one."""
    for world in WORLDS.values():
        if name in world.names:
            return world, name.removeprefix(world.name).removeprefix("-") or MAIN
    return None

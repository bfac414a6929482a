"""The whole of a demo: check, export, draw, judge, write."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from npnet_runtime import GoldenNoise, __version__
from npnet_runtime.files import atomic_directory
from npnet_runtime.networks.registry import network_for
from npnet_runtime.weights.packaged import PackagedModel
from npnet_training.demo.checks import RESULTS, check_modules, check_output, read_texts
from npnet_training.demo.settings import DemoSettings
from npnet_training.embedded import AssetsError
from npnet_training.errors import DemoError

if TYPE_CHECKING:
    from npnet_runtime.bundles.bundle import EngineBundle
    from npnet_training.demo.drawing import Drawn

ENGINE, GALLERY = "engine", "gallery.html"


@dataclass(frozen=True)
class Demonstration:
    """What a demo found.

    Args:
        results: the content of `results.json`.
        drawn: the images by denoiser and arm.
    """

    results: dict[str, Any]
    drawn: Mapping[str, Mapping[str, Sequence[Drawn]]]


def demonstrate(settings: DemoSettings, say: Callable[[str], None] = lambda text: None) -> Demonstration:
    """Run the demo and write its folder, whole or not at all.

    Args:
        settings: see there.
        say: told what happens next.

    Raises:
        PromptsError: prompts that are outside the grammar, or none.
        AssetsError: the model or the golden-noise weights are missing or altered.
        DemoError: a module is missing, or the folder cannot be written.
        NPNetError: the engine could not be built.
    """
    prompts, listing = check_all(settings)
    try:
        with _output(settings) as folder:
            return _run(settings, prompts, listing, folder, say)
    except OSError as error:
        raise DemoError(
            f"--output {settings.output}: cannot be written ({error}); give another folder"
        ) from error


def check_all(settings: DemoSettings) -> tuple[list[str], dict[str, Any]]:
    """Everything that can be found wrong before something slow is imported or made.

    Returns:
        The prompt of each pair of images, and the listing of the model's files.

    Raises:
        PromptsError, AssetsError, DemoError: see `demonstrate`.
    """
    prompts = read_texts(settings.prompts, settings.about)
    check_output(settings.output, force=settings.force)
    listing = _check_assets(settings)
    check_modules(settings)
    return [one for one in prompts for _ in range(settings.seeds)], listing


def _output(settings: DemoSettings) -> AbstractContextManager[Path]:
    return atomic_directory(settings.output.absolute(), replace=settings.force)


def _check_assets(settings: DemoSettings) -> dict[str, Any]:
    listing = settings.about.model.check(settings.models, settings.denoisers)
    name = _packaged(settings).filename
    if name not in listing["files"]:
        raise AssetsError(
            f"{settings.models}: expected the golden-noise weights {name}, listed in its manifest; it has "
            f"none. Train them with npnet-collect and npnet-train, or leave --model-dir out"
        )
    return listing


def _run(
    settings: DemoSettings,
    prompts: list[str],
    listing: dict[str, Any],
    folder: Path,
    say: Callable[[str], None],
) -> Demonstration:
    # Here, after all checks: these imports take seconds.
    from npnet_training.demo.drawing import GOLDEN, PLAIN, Artist
    from npnet_training.demo.gallery import write_gallery
    from npnet_training.demo.pictures import write_grid
    from npnet_training.demo.summary import image_rows, summarise
    from npnet_training.demo.tables import about, tables, timing

    say(f"exporting {_packaged(settings).filename} to {settings.engine}")
    bundle = _export(settings, folder / ENGINE)
    golden = GoldenNoise(bundle, device="cpu")
    drawn, images, found = {}, [], {}
    for name in settings.denoisers:
        say(f"loading the {name} denoiser")
        artist = Artist(settings, golden, name)
        drawn[name] = artist.draw(prompts, say)
        images += image_rows(name, drawn[name])
        times = {"one image": artist.time_one(prompts[0])}
        times[f"batches of {min(settings.batch, len(prompts))}"] = artist.times.summary()
        found[name] = {
            "steps": settings.steps_of(name),
            "guidance": settings.guidance_of(name),
            "arms": summarise(drawn[name], settings.resamples, settings.about),
            "time": times,
        }
        shown = slice(settings.pictures)
        write_grid(folder / f"grid-{name}.png", drawn[name][PLAIN][shown], drawn[name][GOLDEN][shown])
    results = {
        **_about(settings, bundle, listing), "prompts": len(set(prompts)), "pairs": len(prompts),
        "denoisers": found, "images": images,
    }  # fmt: skip
    lines = [*about(results), *timing(results)]
    write_gallery(folder / GALLERY, lines, tables(results), drawn, results["settings"])
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return Demonstration(results, drawn)


def _export(settings: DemoSettings, folder: Path) -> EngineBundle:
    from npnet_export import ExportSettings, export
    from npnet_export.weights import WeightsRequest

    model = _packaged(settings)
    # The bundle names the package where it can: it is then the same on every machine.
    source = None if _bundled(settings) else str((settings.models / model.filename).absolute())
    return export(
        ExportSettings(
            WeightsRequest(model, source), folder, model.name, settings.engine, max_batch=settings.batch,
            device="cpu",
        )
    )  # fmt: skip


def _about(settings: DemoSettings, bundle: EngineBundle, listing: dict[str, Any]) -> dict[str, Any]:
    manifest, name = bundle.manifest, _packaged(settings).filename
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in network_for(manifest.config).parameters())
    parity = next(row for row in manifest.parity if row.tolerance is not None)
    return {
        "settings": settings.model_dump(mode="json", exclude={"output", "force", "model_dir"}),
        "model": {
            "folder": f"{settings.world}, bundled" if _bundled(settings) else settings.models.name,
            "licence": listing["licence"],
            "files": len(listing["files"]),
        },
        "weights": {
            "file": name,
            "sha256": listing["files"][name]["sha256"],
            "kind": manifest.config.kind,
            "parameters": count,
        },
        "engine": {
            "kind": manifest.engine,
            "precision": manifest.precision,
            "digest": bundle.digest,
            "differs_by": parity.value,
        },
        "versions": {
            "npnet-runtime": __version__, "torch": torch.__version__, "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _packaged(settings: DemoSettings) -> PackagedModel:
    return settings.about.networks[settings.network]


def _bundled(settings: DemoSettings) -> bool:
    return settings.models == settings.about.model.folder

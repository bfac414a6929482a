"""Make the images of a run, one after another, each kept as soon as it is made."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from npnet_runtime.errors import GenerateError, NPNetError
from npnet_runtime.files import atomic_file
from npnet_runtime.generate.settings import GenerateSettings, ImageSettings
from npnet_runtime.golden import GoldenNoise
from npnet_runtime.integrations.diffusers.golden_lora import GoldenLora

NOTE = "npnet"  # the text chunk of a PNG that says how it was made
KEYS = ("prompt", "seed", "noise", "settings")  # of it, that tell one image from another
Scorer = Callable[[Image.Image, str], float]


@dataclass(frozen=True)
class Made:
    """An image that was made.

    Args:
        settings: which one.
        path: the PNG.
        seconds: the pipeline's call took, text encoders and decoder included.
        score: by the scorer, if there was one.
        fresh: made by this run, not by an earlier one.
    """

    settings: ImageSettings
    path: Path
    seconds: float
    score: float | None
    fresh: bool


def make_images(
    settings: GenerateSettings,
    folder: Path,
    load: Callable[[], Any],
    golden: GoldenNoise | GoldenLora,
    begin: Callable[[], None] = lambda: None,
) -> Iterator[Made]:
    """Make the images that are not there yet.

    Args:
        settings: of the run.
        folder: where to.
        load: gives the pipeline; called only if there is something to make.
        golden: the engine.
        begin: called once all checks have passed, before the first image that is made.

    Yields:
        Every image of the run, in order.

    Raises:
        GenerateError: a scorer that cannot be found, or gives no number.
        NPNetError: the pipeline and the engine do not fit each other.
    """
    scorer = load_scorer(settings.scorer) if settings.scorer else None
    if scorer:
        # before minutes of work, not after
        _score(scorer, Image.new("RGB", (256, 256), "gray"), settings.prompts[0])
    digest = settings.digest()
    pipe: Any = None
    for image in settings.images:
        path = folder / image.filename
        made = _read(path, image, digest)
        if made is None:
            if pipe is None:
                pipe = load()
                _warm_up(pipe, golden, settings)
                begin()
            made = _make(pipe, golden, settings, image, path, scorer)
        yield made


def load_scorer(name: str) -> Scorer:
    """The function that `module:function` names.

    Raises:
        GenerateError: there is none.
    """
    module, _, function = name.partition(":")
    try:
        scorer = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise GenerateError(
            f"scorer: expected module:function with function(image, prompt) -> float, given {name!r}: {error}"
        ) from error
    return scorer


def _call(
    pipe: Any,
    golden: GoldenNoise | GoldenLora,
    settings: GenerateSettings,
    image: ImageSettings,
    **changes: Any,
) -> Any:
    if image.kind == "golden":
        golden.attach(pipe)
    try:
        # A generator on the CPU: the same noise on every device.
        generator = torch.Generator("cpu").manual_seed(image.seed)
        return pipe(prompt=image.prompt, generator=generator, **settings.call() | changes).images[0]
    except NPNetError:
        raise
    except (TypeError, ValueError) as error:
        raise GenerateError(f"{type(pipe).__name__} refused the call: {error}") from error
    finally:
        if image.kind == "golden":
            golden.detach(pipe)


def _warm_up(pipe: Any, golden: GoldenNoise | GoldenLora, settings: GenerateSettings) -> None:
    """First calls are slow, and would be charged to whichever noise comes first."""
    for kind in settings.kinds:
        _call(pipe, golden, settings, ImageSettings(settings.prompts[0], 0, kind), num_inference_steps=1)


def _make(
    pipe: Any,
    golden: GoldenNoise | GoldenLora,
    settings: GenerateSettings,
    image: ImageSettings,
    path: Path,
    scorer: Scorer | None,
) -> Made:
    start = time.perf_counter()
    picture = _call(pipe, golden, settings, image)
    seconds = time.perf_counter() - start
    score = _score(scorer, picture, image.prompt) if scorer else None
    note = {
        "prompt": image.prompt,
        "seed": image.seed,
        "noise": image.kind,
        "seconds": seconds,
        "score": score,
        "settings": settings.digest(),
    }
    text = PngImagePlugin.PngInfo()
    text.add_itxt(NOTE, json.dumps(note))
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=text)
    return Made(image, path, seconds, score, fresh=True)


def _score(scorer: Scorer, picture: Image.Image, prompt: str) -> float:
    try:
        return float(scorer(picture, prompt))
    except Exception as error:
        raise GenerateError(
            f"scorer: expected a number for an image and its prompt, given {error!r}"
        ) from error


def _read(path: Path, image: ImageSettings, digest: str) -> Made | None:
    """An image of an earlier run; None if there is none, or it is not whole, or another one."""
    try:
        with Image.open(path) as picture:
            picture.load()
            note = json.loads(getattr(picture, "text", {})[NOTE])
        found = [note[key] for key in KEYS]
    except (UnidentifiedImageError, OSError, ValueError, KeyError, SyntaxError):
        return None
    if found != [image.prompt, image.seed, image.kind, digest]:
        return None
    return Made(image, path, note["seconds"], note["score"], fresh=False)

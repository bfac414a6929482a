"""Makes and judges the images of all arms, batch by batch."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from npnet_runtime import __version__
from npnet_runtime.files import atomic_file
from npnet_training.errors import EvaluateError
from npnet_training.evaluation.arms import Arm, make_arms
from npnet_training.evaluation.features import load_features, mean_distance
from npnet_training.evaluation.layout import layout_of
from npnet_training.evaluation.results import FILE, Results, batch_path
from npnet_training.evaluation.settings import OF_THE_RUN, EvaluateSettings
from npnet_training.models import load_pipeline
from npnet_training.noise_statistics import noise_statistics
from npnet_training.prompts import Prompt, read_prompts
from npnet_training.sampling import Denoiser, draw_noise, sample_images
from npnet_training.scorers import Scorer, load_scorer, score_all
from npnet_training.settings import differences, parse_size

if TYPE_CHECKING:
    from PIL import Image

# Between the seeds of two candidates of best-of-N: more than an evaluation has images. Within 32 bits in all,
# because torch's generator on the CPU reads no more of a seed.
CANDIDATES = 50_000_017


class Evaluator:
    """A pipeline, its arms and judges.

    Args:
        settings: see there.
        arms: further ones, for what no engine exists of.

    Raises:
        ModelError, ScorerError, SettingsError, BundleError, BackendError: one cannot be made.
    """

    def __init__(self, settings: EvaluateSettings, arms: Sequence[Arm] = ()) -> None:
        self.settings = settings
        self.pipe: Any
        self.pipe, self.model = load_pipeline(
            settings.model, device=settings.device, dtype=getattr(torch, settings.dtype),
            revision=settings.revision, offline=settings.offline,
        )  # fmt: skip
        self.denoiser = Denoiser(self.pipe)
        self.shape = self.denoiser.shape_for(parse_size(settings.size) if settings.size else None)
        self.arms = [*make_arms(settings, self.denoiser), *arms]
        where: Any = {"device": settings.device, "offline": settings.offline}
        self.scorers = {name: load_scorer(name, **where) for name in settings.scorers}
        self.features = load_features(settings.diversity, **where) if settings.seeds > 1 else None

    def make(self, prompts: Sequence[Prompt], first: int) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """Evaluate a batch.

        Args:
            prompts: of the batch, each `settings.seeds` times.
            first: number of its first image.

        Returns:
            What is stored of it, and its images by arm.
        """
        texts = [prompt.text for prompt in prompts]
        seeds = [self.settings.seed + first + row for row in range(len(prompts))]
        conditioning = self.denoiser.encode(texts)
        plain = draw_noise(seeds, self.shape).to(self.settings.device)
        found: dict[str, Any] = {}
        images: dict[str, list[Any]] = {}
        for arm in self.arms:
            began = self._now()
            noise = plain if arm.change is None else arm.change(plain, conditioning)
            changed = self._now()
            images[arm.name], unjudged = self._images(arm, texts, conditioning, noise, seeds)
            found[arm.name] = {
                "unjudged": unjudged,
                "noise_seconds": changed - began,
                "image_seconds": self._now() - changed,
                "noise": noise_statistics(noise, plain),
                "scores": _finite(score_all(self.scorers, texts, images[arm.name])),
                "diversity": self._diversity(images[arm.name]),
                "layout": layout_of(images[arm.name]).round(4).tolist(),
            }
        rows = [
            {"prompt": prompt.text, "seed": seed, "fields": _plain(prompt.fields)}
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return {"first": first, "rows": rows, "arms": found}, images

    def _images(
        self, arm: Arm, texts: list[str], conditioning: Any, noise: Tensor, seeds: list[int]
    ) -> tuple[list[Image.Image], int]:
        """Images, and how many are the first candidate because the chooser gave none of theirs a number."""
        sample = self.settings.sample
        best = sample_images(self.denoiser, conditioning, noise, sample, seeds=seeds)
        if arm.chooser is None:
            return best, 0
        scores = _ranks(arm.name, arm.chooser, texts, best)
        for candidate in range(1, arm.candidates):
            others = [seed + candidate * CANDIDATES for seed in seeds]
            noise = draw_noise(others, self.shape).to(self.settings.device)
            images = sample_images(self.denoiser, conditioning, noise, sample, seeds=others)
            given = _ranks(arm.name, arm.chooser, texts, images)
            for row in np.flatnonzero(given > scores):
                best[row], scores[row] = images[row], given[row]
        return best, int(np.isneginf(scores).sum())

    def _diversity(self, images: list[Image.Image]) -> list[float]:
        count = self.settings.seeds
        if self.features is None:
            return []
        features = self.features(images)
        return [mean_distance(features[at : at + count]) for at in range(0, len(images), count)]

    def _now(self) -> float:
        if self.settings.device.startswith("cuda"):
            torch.cuda.synchronize(self.settings.device)
        return time.perf_counter()


def evaluate(
    settings: EvaluateSettings, arms: Sequence[Arm] = (), report: Callable[[int], None] = lambda images: None
) -> Results:
    """Make what is missing of an evaluation, and read all of it.

    Args:
        settings: see there.
        arms: see `Evaluator`.
        report: told the number of images judged in each arm, after every batch.

    Raises:
        EvaluateError: the folder holds another or a damaged evaluation, or cannot be written.
        TrainingError: a model, arm, scorer or prompt is wrong.
        OSError: the disk is full; what was stored before stays.
    """
    prompts = list(islice(read_prompts(settings.prompts), settings.max_prompts))
    distinct: dict[str, Prompt] = {}
    for prompt in prompts:
        distinct.setdefault(prompt.text, prompt)  # duplicates would count twice
    repeated = [prompt for prompt in distinct.values() for _ in range(settings.seeds)]
    evaluator = Evaluator(settings, arms)
    _begin(settings, evaluator)
    for first in range(0, len(repeated), settings.batch):
        part = repeated[first : first + settings.batch]
        path = batch_path(settings.output, first)
        if not _done(path, part):
            values, images = evaluator.make(part, first)
            _save_pictures(settings, first, images)
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(values) + "\n", encoding="utf-8")
        report(first + len(part))
    return Results.read(settings.output, len(repeated))


def _begin(settings: EvaluateSettings, evaluator: Evaluator) -> None:
    path = settings.output / FILE
    own = {
        "settings": settings.model_dump(mode="json", exclude=set(OF_THE_RUN)),
        "arms": [arm.name for arm in evaluator.arms],
        "candidates": {arm.name: arm.candidates for arm in evaluator.arms},
        "engines": {arm.name: arm.engine for arm in evaluator.arms if arm.engine},
        "model_revision": evaluator.model.revision,
        "versions": {
            "npnet-runtime": __version__, "torch": torch.__version__, "python": platform.python_version(),
        },
        "device": settings.device,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    if path.exists():
        if not settings.resume:
            raise EvaluateError(
                f"{settings.output} holds an evaluation: go on with --resume, or give another --output"
            )
        same = ("arms", "engines", "model_revision")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            wrong = differences(found["settings"], own["settings"])  # type: ignore[arg-type]
            wrong += differences({k: found[k] for k in same}, {k: own[k] for k in same})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluateError(
                f"{path} is damaged ({type(error).__name__}: {error}): nothing says what the batches beside "
                "it were made with; bring it back from a copy, or give another --output"
            ) from error
        if wrong:
            raise EvaluateError(f"{settings.output} was made with other settings:\n  " + "\n  ".join(wrong))
        return
    if settings.output.exists() and (not settings.output.is_dir() or any(settings.output.iterdir())):
        raise EvaluateError(f"{settings.output} exists and is no evaluation: give another --output")
    try:
        settings.output.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise EvaluateError(f"{settings.output}: cannot be written ({error})") from error


def _done(path: Path, prompts: list[Prompt]) -> bool:
    if not path.exists():
        return False
    try:
        given = [row["prompt"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluateError(f"{path} is damaged ({error}): delete it, and run again with --resume") from error
    if any(text != prompt.text for text, prompt in zip(given, prompts, strict=False)):
        raise EvaluateError(f"{path} was made from other prompts: give another --output")
    return len(given) >= len(prompts)


def _save_pictures(settings: EvaluateSettings, first: int, images: dict[str, list[Any]]) -> None:
    for arm, made in enumerate(images.values()):
        for row, image in enumerate(made):
            number = first + row
            if number % settings.seeds == 0 and number // settings.seeds < settings.pictures:
                path = settings.output / "pictures" / f"{number // settings.seeds:04d}-{arm}.png"
                with atomic_file(path) as temporary:
                    image.save(temporary, "PNG")


def _ranks(name: str, chooser: Scorer, texts: list[str], images: list[Image.Image]) -> NDArray[np.float64]:
    """Scores (N,), minus infinity where the chooser gave no number: there any other candidate wins."""
    scores = np.array(score_all({name: chooser}, texts, images)[name], np.float64)
    return np.where(np.isnan(scores), -np.inf, scores)


def _finite(scores: dict[str, list[float]]) -> dict[str, list[float | None]]:
    # JSON has no NaN
    return {name: [v if math.isfinite(v) else None for v in values] for name, values in scores.items()}


def _plain(fields: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in fields.items() if isinstance(value, str | int | float)}

"""Golden noise along a model's own training: `python -m npnet_training.study.checkpoints`.

Does golden noise help a model that cannot place things, or one that nearly can? The same network, and the
paper's re-denoising, in front of the checkpoints that the build keeps.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from npnet_runtime import __version__
from npnet_runtime.files import atomic_file, sha256
from npnet_runtime.weights import checkpoint
from npnet_training.command import run
from npnet_training.embedded import SCENES
from npnet_training.evaluation import paired
from npnet_training.sampling import Denoiser, RedenoiseSettings, draw_noise, redenoise, render
from npnet_training.scenes.grammar import Scene, prompts
from npnet_training.scenes.judging import Change
from npnet_training.scenes.networks import TOKENS
from npnet_training.scenes.second_judge import FILE, SecondJudge
from npnet_training.scenes.verify import failure_of, verify
from npnet_training.settings import Settings
from npnet_training.study.arms import changed_by

EPILOG = """example:
  python -m npnet_training.study.checkpoints --models scenes-model/checkpoints/1000,scenes-model \\
      --network networks/prompt-attention.safetensors --output curve.json
"""
LAYOUT = ("count", "binding", "placement")


class CurveSettings(Settings):
    """Plain, re-denoised and golden noise in front of several states of a model."""

    models: tuple[Path, ...] = Field(min_length=1)
    """Folders as the build writes them, in the order of the rows."""
    network: Path
    """Checkpoint of the golden noise."""
    output: Path
    """JSON file to write."""
    prompts: int = Field(default=300, ge=1)
    """Held-out prompts, a seed each."""
    steps: int = Field(default=10, ge=1)
    """Denoising steps."""
    guidance: float = Field(default=3.0, ge=0, allow_inf_nan=False)
    """Of two predictions; 1 for none."""
    seed: int = 1_000_000
    """Of the first noise."""
    batch: int = Field(default=50, ge=1)
    """Images at once."""


def curve(settings: CurveSettings) -> dict[str, Any]:
    """Measure every model, and write the file.

    Raises:
        AssetsError: a model is incomplete.
        CheckpointError: the network cannot be read.
    """
    golden = changed_by(checkpoint.read(settings.network).network().eval())
    rows = []
    for folder in settings.models:
        rows.append({"model": folder.name, **_row(settings, folder, golden)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    document = {
        "command": "python -m npnet_training.study.checkpoints",
        "settings": settings.model_dump(mode="json", exclude={"models", "network", "output"}),
        "version": __version__,
        "network": sha256(settings.network),
        "rows": rows,
    }
    with atomic_file(settings.output) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


@torch.no_grad()
def _row(settings: CurveSettings, folder: Path, golden: Change) -> dict[str, Any]:
    denoiser = Denoiser(SCENES.load(folder=folder), None, {"max_sequence_length": TOKENS})
    again = RedenoiseSettings(weight="guidance")
    arms: dict[str, Change | None] = {
        "plain": None,
        "redenoised": lambda noise, prompts: redenoise(denoiser, noise, prompts, again),
        "golden": golden,
    }
    judge = SecondJudge.load(SCENES.folder / FILE)
    found: dict[str, Any] = {}
    plain: list[NDArray[np.float64]] = []
    for name, change in arms.items():
        strict, second, failures = _judged(settings, denoiser, change, judge.strict)
        wrong = max(1, failures.total())
        plain = plain or [strict, second]
        found[name] = {
            "strict": float(strict.mean()),
            "second_judge": float(second.mean()),
            # Of all images: how many are right in layout, whatever else is wrong with them.
            "layout": 1 - sum(failures[kind] for kind in LAYOUT) / len(strict),
            "failures": {kind: count / wrong for kind, count in sorted(failures.items())},
        }
        if change is not None:
            pairs = zip(("against_plain", "second_against_plain"), plain, (strict, second), strict=True)
            found[name] |= {key: vars(paired(before, after)) for key, before, after in pairs}
    return found


def _judged(
    settings: CurveSettings,
    denoiser: Denoiser,
    change: Change | None,
    second_judge: Callable[..., list[bool]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], Counter[str]]:
    texts = prompts("held-out", settings.prompts)
    strict, second, failures = [], [], Counter[str]()
    for start in range(0, len(texts), settings.batch):
        part = texts[start : start + settings.batch]
        scenes, conditioning = [Scene.parse(text) for text in part], denoiser.encode(part)
        seeds = range(settings.seed + start, settings.seed + start + len(part))
        noise = draw_noise(seeds, denoiser.latent_shape)
        noise = noise if change is None else change(noise, conditioning)
        images = render(denoiser, noise, conditioning, settings.steps, settings.guidance, seeds=seeds)
        for image, scene in zip(images.numpy(), scenes, strict=True):
            verdict = verify(image, scene)
            failure = failure_of(verdict, scene)
            strict.append(float(verdict.strict))
            failures.update([] if failure is None else [failure])
        second += [float(right) for right in second_judge(images, scenes)]
    return np.array(strict), np.array(second), failures


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(CurveSettings, "python -m npnet_training.study.checkpoints", EPILOG, argv, _work)


def _work(settings: CurveSettings) -> int:
    for row in curve(settings)["rows"]:
        plain, golden = row["plain"], row["golden"]
        gain = 100 * golden["against_plain"]["difference"]
        print(f"{row['model']}: layout {100 * plain['layout']:.1f} %, golden noise {gain:+.1f} points")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Golden noise along a model's own training: `python -m npnet_training.study.checkpoints`.

Does golden noise help a model that cannot place things, or one that nearly can? The same network, and the
paper's re-denoising, in front of the checkpoints that the build keeps.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from npnet_runtime import __version__
from npnet_runtime.files import atomic_file, sha256
from npnet_runtime.weights import checkpoint
from npnet_training.command import run
from npnet_training.embedded import SCENES
from npnet_training.evaluation import paired
from npnet_training.sampling import Denoiser, RedenoiseSettings, redenoise
from npnet_training.scenes.grammar import prompts
from npnet_training.scenes.judging import Change, Judged, judged
from npnet_training.scenes.networks import TOKENS
from npnet_training.scenes.second_judge import FILE, SecondJudge
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


def _row(settings: CurveSettings, folder: Path, golden: Change) -> dict[str, Any]:
    pipe = SCENES.load(folder=folder)
    denoiser = Denoiser(pipe, None, {"max_sequence_length": TOKENS})
    again = RedenoiseSettings(weight="guidance")
    arms: dict[str, Change | None] = {
        "plain": None,
        "redenoised": lambda noise, prompts: redenoise(denoiser, noise, prompts, again),
        "golden": golden,
    }
    judge = SecondJudge.load(SCENES.folder / FILE)
    rows = {
        name: judged(
            pipe, prompts("held-out", settings.prompts), change, steps=settings.steps,
            guidance=settings.guidance, seed=settings.seed, batch=settings.batch, second_judge=judge,
        )
        for name, change in arms.items()
    }  # fmt: skip
    return {name: _summary(of, rows["plain"] if name != "plain" else None) for name, of in rows.items()}


def _summary(rows: list[Judged], plain: list[Judged] | None) -> dict[str, Any]:
    failures = Counter(row.failure for row in rows if row.failure is not None)
    found = {
        "strict": float(_strict(rows).mean()),
        "second_judge": float(_second(rows).mean()),
        # Of all images: how many are right in layout, whatever else is wrong with them.
        "layout": 1 - sum(failures[kind] for kind in LAYOUT) / len(rows),
        "failures": {kind: count / failures.total() for kind, count in sorted(failures.items())},
    }
    if plain is None:
        return found
    return found | {
        "against_plain": vars(paired(_strict(plain), _strict(rows))),
        "second_against_plain": vars(paired(_second(plain), _second(rows))),
    }


def _strict(rows: list[Judged]) -> NDArray[np.float64]:
    return np.array([float(row.strict) for row in rows])


def _second(rows: list[Judged]) -> NDArray[np.float64]:
    return np.array([float(bool(row.second)) for row in rows])


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

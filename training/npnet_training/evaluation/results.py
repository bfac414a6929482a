"""The numbers of an evaluation, read back and compared."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npnet_training.errors import EvaluateError
from npnet_training.evaluation.arms import PLAIN
from npnet_training.evaluation.statistics import Paired, paired
from npnet_training.noise_statistics import STATISTICS

FILE = "evaluation.json"
CATEGORIES = ("tag", "Category", "category")


def batch_path(folder: Path, first: int) -> Path:
    """Where the batch that begins with that image is stored."""
    return folder / "batches" / f"{first:07d}.json"


@dataclass(frozen=True)
class Results:
    """All that was measured.

    Args:
        about: settings, versions, arms.
        rows: prompt, seed and fields of each image.
        arms: by name: `scores` by scorer (N,), `diversity` (prompts,), `noise` by statistic (N,),
            seconds per image for noise and images, one for each batch, and `unjudged`: how many images of
            best-of-N are the first candidate because its scorer gave none of theirs a number.
    """

    about: dict[str, Any]
    rows: list[dict[str, Any]]
    arms: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path, count: int | None = None) -> Results:
        """Read an evaluation.

        Args:
            folder: of the evaluation.
            count: of images; None for all that are there.

        Raises:
            EvaluateError: missing or damaged.
        """
        try:
            about = json.loads((folder / FILE).read_text(encoding="utf-8"))
            paths = sorted((folder / "batches").glob("*.json"))
            batches = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
            batches = [batch for batch in batches if count is None or batch["first"] < count]
            rows = [row for batch in batches for row in batch["rows"]]
            arms = {name: _joined([batch["arms"][name] for batch in batches]) for name in about["arms"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvaluateError(
                f"{folder}: expected an evaluation ({type(error).__name__}: {error})"
            ) from error
        return cls(about, rows, arms)

    @property
    def scorers(self) -> list[str]:
        """Names of the judges."""
        return list(self.about["settings"]["scorers"])

    def compare(
        self, arm: str, scorer: str, *, resamples: int = 10_000, category: str | None = None
    ) -> Paired:
        """An arm against the plain one by one judge, on all prompts or those of a category."""
        rows = np.array([category is None or self.category(row) == category for row in self.rows])
        groups = np.array([row["prompt"] for row in self.rows])[rows]
        plain, other = (self.arms[name]["scores"][scorer][rows] for name in (PLAIN, arm))
        return paired(plain, other, groups, resamples=resamples)

    def compare_diversity(self, arm: str, *, resamples: int = 10_000) -> Paired | None:
        """Diversity between the seeds of a prompt against the plain arm's; None with one seed a prompt."""
        plain, other = (self.arms[name]["diversity"] for name in (PLAIN, arm))
        return paired(plain, other, resamples=resamples) if len(plain) else None

    @staticmethod
    def category(row: dict[str, Any]) -> str | None:
        """What a prompt's source calls its kind: GenEval's tag, DrawBench's Category."""
        return next((row["fields"][name] for name in CATEGORIES if name in row["fields"]), None)

    @property
    def categories(self) -> list[str]:
        """All of them, in the order of the prompts."""
        return list(dict.fromkeys(name for row in self.rows if (name := self.category(row)) is not None))

    def summary(self, *, resamples: int = 10_000) -> dict[str, Any]:
        """Everything the report shows, as plain values."""
        found: dict[str, Any] = {**self.about, "images": len(self.rows), "results": {}}
        for name, arm in self.arms.items():
            entry: dict[str, Any] = {
                "noise_ms": _spread(arm["noise_seconds"]),
                "image_ms": _spread(arm["image_seconds"]),
                "noise": {key: float(np.mean(arm["noise"][key])) for key in STATISTICS},
                "diversity": float(np.mean(arm["diversity"])) if len(arm["diversity"]) else None,
                "unjudged": arm["unjudged"],
                "scores": {},
            }
            for scorer in self.scorers:
                scores = arm["scores"][scorer]
                entry["scores"][scorer] = {
                    "mean": float(np.nanmean(scores)),
                    "missing": int(np.isnan(scores).sum()),
                }
                if name != PLAIN:
                    entry["scores"][scorer] |= asdict(self.compare(name, scorer, resamples=resamples))
            if name != PLAIN and (diversity := self.compare_diversity(name, resamples=resamples)):
                entry["diversity_difference"] = asdict(diversity)
            found["results"][name] = entry
        return found


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    def flat(key: str, name: str) -> NDArray[np.float64]:
        return np.array([value for part in parts for value in part[key][name]], np.float64)

    sizes = [len(part["noise"]["mean"]) for part in parts]
    return {
        "scores": {name: flat("scores", name) for name in parts[0]["scores"]},
        "noise": {name: flat("noise", name) for name in STATISTICS},
        # not in evaluations of old
        "layout": np.array([row for part in parts for row in part.get("layout", [])], np.float64),
        "diversity": np.array([value for part in parts for value in part["diversity"]], np.float64),
        "unjudged": sum(part.get("unjudged", 0) for part in parts),
        **{
            key: np.array([part[key] / size for part, size in zip(parts, sizes, strict=True)])
            for key in ("noise_seconds", "image_seconds")
        },
    }


def _spread(seconds: NDArray[np.float64]) -> dict[str, float]:
    """Milliseconds per image: median and 90th percentile over batches."""
    median, p90 = np.percentile(1000 * seconds, [50, 90])
    return {"median": float(median), "p90": float(p90)}

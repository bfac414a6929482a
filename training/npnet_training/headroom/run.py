"""Measures the headroom of a model: images of several seeds, judged, and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npnet_runtime.files import atomic_file
from npnet_training.errors import EvaluateError
from npnet_training.evaluation.arms import PLAIN
from npnet_training.evaluation.evaluator import evaluate
from npnet_training.evaluation.layout import NAMES
from npnet_training.evaluation.results import Results
from npnet_training.headroom.analysis import (
    Estimate,
    curve,
    seed_deviation,
    seed_share,
    verdict,
    with_interval,
)
from npnet_training.headroom.settings import HeadroomSettings

SUMMARY, PLOT, REPORT = "headroom.json", "headroom.png", "headroom.md"


def measure(
    settings: HeadroomSettings, report: Callable[[int], None] = lambda images: None
) -> dict[str, Any]:
    """Make what is missing of a measurement, and say what all of it says.

    Args:
        settings: see there.
        report: told the number of images judged, after every prompt.

    Returns:
        The summary, as it is written to `headroom.json`.

    Raises:
        EvaluateError: the folder holds something else, or a judge gave no numbers.
        TrainingError: a model, scorer or prompt is wrong.
    """
    results = evaluate(settings.evaluation(), report=report)
    summary = summarise(results, settings)
    _write(settings.output, summary)
    return summary


def summarise(results: Results, settings: HeadroomSettings) -> dict[str, Any]:
    """Everything the report shows, as plain values."""
    arm, seeds = results.arms[PLAIN], settings.seeds
    found: dict[str, Any] = {
        "model": settings.model,
        "prompts": len(results.rows) // seeds,
        "seeds": seeds,
        "scores": {},
        "settings": results.about["settings"],
        "versions": results.about["versions"],
    }
    for scorer in results.scorers:
        scores = _by_prompt(arm["scores"][scorer], seeds, scorer)
        share = with_interval(scores, seed_share, settings.resamples)
        best = curve(scores, settings.resamples)
        entry: dict[str, Any] = {
            "mean": float(scores.mean()),
            "seed_share": asdict(share),
            "best_of": [asdict(one) for one in best],
            "verdict": verdict(scorer, share, best, float(scores.std())),
        }
        if settings.redenoised:
            gain = results.compare("redenoised", scorer, resamples=settings.resamples)
            entry["redenoised"] = asdict(Estimate(gain.difference, gain.low, gain.high))
        found["scores"][scorer] = entry
    layout = arm["layout"].reshape(-1, seeds, len(NAMES))
    found["layout"] = {
        name: {
            "seed_share": asdict(with_interval(layout[..., place], seed_share, settings.resamples)),
            "seed_deviation": seed_deviation(layout[..., place]),
        }
        for place, name in enumerate(NAMES)
    }
    return found


def _by_prompt(values: NDArray[np.float64], seeds: int, scorer: str) -> NDArray[np.float64]:
    table = values.reshape(-1, seeds)
    table = table[~np.isnan(table).any(axis=1)]
    if not len(table):
        raise EvaluateError(f"the scorer {scorer} gave no prompt a number for all of its {seeds} seeds")
    return table


def _write(folder: Path, summary: dict[str, Any]) -> None:
    with atomic_file(folder / SUMMARY) as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    with atomic_file(folder / REPORT) as temporary:
        temporary.write_text(text_of(summary), encoding="utf-8")
    with atomic_file(folder / PLOT) as temporary:
        _plot(summary, temporary)


def text_of(summary: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"# What noise can do for {summary['model']}",
        "",
        f"{summary['prompts']} prompts, {summary['seeds']} seeds each. Intervals are of 95 %, over prompts.",
        "",
    ]
    for entry in summary["scores"].values():
        lines += [entry["verdict"], ""]
        if "redenoised" in entry:
            lines += [
                f"Re-denoised noise, the target of the paper: {_told(entry['redenoised'], '+.4g')}.",
                "",
            ]
    lines += ["| judge | " + " | ".join(f"best of {k}" for k in _shown(summary["seeds"])) + " |"]
    lines += ["|---|" + "---|" * len(_shown(summary["seeds"]))]
    for scorer, entry in summary["scores"].items():
        cells = [_told(entry["best_of"][k - 1], "+.4g") for k in _shown(summary["seeds"])]
        lines += [f"| {scorer} | " + " | ".join(cells) + " |"]
    lines += ["", "| of the image | the seed's share | between seeds |", "|---|---|---|"]
    unit = {"x": "of the width", "y": "of the height"}
    for name, entry in summary["layout"].items():
        share = {key: 100 * value for key, value in entry["seed_share"].items()}
        what = f"place of what stands out, {name}" if name in unit else f"mean {name}"
        lines += [
            f"| {what} | {_told(share, '.0f')} % | {entry['seed_deviation']:.3f} {unit.get(name, '')} |"
        ]
    return "\n".join([*lines, "", f"![best of N]({PLOT})", ""])


def _shown(seeds: int) -> list[int]:
    return [k for k in (2, 4, 8, 16, 32, 64) if k < seeds] + [seeds]


def _told(estimate: dict[str, float], form: str) -> str:
    value, low, high = (format(estimate[name], form) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _plot(summary: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    count = len(summary["scores"])
    figure = Figure(figsize=(5 * count, 4), layout="constrained")
    for place, (scorer, entry) in enumerate(summary["scores"].items(), 1):
        axes = figure.add_subplot(1, count, place, xlabel="best of N seeds", ylabel=f"gain in {scorer}")
        n = range(1, summary["seeds"] + 1)
        axes.plot(n, [one["value"] for one in entry["best_of"]], marker="o", label="best of N, N evaluations")
        axes.fill_between(
            n, [one["low"] for one in entry["best_of"]], [one["high"] for one in entry["best_of"]], alpha=0.2
        )
        if "redenoised" in entry:
            axes.axhline(
                entry["redenoised"]["value"], linestyle="--", color="grey", label="re-denoised noise"
            )
        axes.legend()
    figure.savefig(path, format="png", dpi=120)

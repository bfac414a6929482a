"""Command line of `npnet-evaluate`."""

from __future__ import annotations

import sys
import time
from itertools import islice

from npnet_training.command import run
from npnet_training.evaluation.arms import PLAIN
from npnet_training.evaluation.by_model import by_model, write_models
from npnet_training.evaluation.evaluator import Evaluator, evaluate
from npnet_training.evaluation.report import write_report
from npnet_training.evaluation.settings import EvaluateSettings
from npnet_training.prompts import read_prompts

EPILOG = """example:
  npnet-evaluate --model sdxl --prompts drawbench.csv --output evaluation --device cuda --dtype float16 \\
      --arms golden:engines/sdxl,redenoised,best-of-2:pickscore --scorers pickscore,clipscore

exit status: 0, 2 for an error, 130 interrupted; after an error or a kill, run it again with --resume
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(EvaluateSettings, "npnet-evaluate", EPILOG, argv, _work)


def _work(settings: EvaluateSettings) -> int:
    for part in (parts := by_model(settings)):
        if settings.dry_run:
            estimate(part)
        else:
            _evaluate(part)
    if len(parts) > 1 and not settings.dry_run:
        print(f"{write_models(parts, settings.output)}, models.json")
    return 0


def _evaluate(settings: EvaluateSettings) -> None:
    began = time.perf_counter()

    def report(images: int) -> None:
        seconds = time.perf_counter() - began
        print(f"{images} images of each arm, {seconds:.0f} s", file=sys.stderr, flush=True)

    results = evaluate(settings, report=report)
    summary = write_report(results, settings.output, resamples=settings.resamples)
    for name, entry in summary["results"].items():
        for scorer, found in entry["scores"].items():
            change = "" if name == PLAIN else f", {found['low']:+.4g} to {found['high']:+.4g} against plain"
            print(f"{name}: {scorer} {found['mean']:.4g}{change}")
    print(f"{settings.output / 'report.md'}, report.html, results.json")


def estimate(settings: EvaluateSettings) -> None:
    """Make one batch, and say how long the whole would take."""
    prompts = list(islice(read_prompts(settings.prompts), settings.max_prompts))
    evaluator = Evaluator(settings)
    first = [prompt for prompt in prompts for _ in range(settings.seeds)][: settings.batch]
    evaluator.make(first, 0)  # the first batch also warms up
    began = time.perf_counter()
    evaluator.make(first, 0)
    count = len(dict.fromkeys(prompt.text for prompt in prompts)) * settings.seeds
    seconds = (time.perf_counter() - began) * count / len(first)
    arms = ", ".join(arm.name for arm in evaluator.arms)
    print(
        f"{count} images in each of the arms {arms}: about {seconds / 60:.1f} minutes, measured on "
        f"{len(first)} of them; nothing was written"
    )

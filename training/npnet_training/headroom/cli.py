"""Command line of `npnet-headroom`."""

from __future__ import annotations

import sys
import time

from npnet_training.command import run
from npnet_training.evaluation.cli import estimate
from npnet_training.headroom.run import PLOT, REPORT, SUMMARY, measure
from npnet_training.headroom.settings import HeadroomSettings

EPILOG = """example:
  npnet-headroom --model sdxl --prompts drawbench.csv --output headroom --scorers pickscore,clipscore \\
      --seeds 8 --max-prompts 100 --device cuda --dtype float16

exit status: 0, 2 for an error, 130 interrupted; after an error or a kill, run it again with --resume
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(HeadroomSettings, "npnet-headroom", EPILOG, argv, _work)


def _work(settings: HeadroomSettings) -> int:
    if settings.dry_run:
        estimate(settings.evaluation())
        return 0
    began = time.perf_counter()

    def report(images: int) -> None:
        seconds = time.perf_counter() - began
        print(f"{images // settings.seeds} prompts, {seconds:.0f} s", file=sys.stderr, flush=True)

    summary = measure(settings, report)
    for entry in summary["scores"].values():
        print(entry["verdict"])
    print(f"{settings.output / REPORT}, {PLOT}, {SUMMARY}")
    return 0

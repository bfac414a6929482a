"""Command line of `npnet-collect`."""

from __future__ import annotations

import sys
import time

from npnet_training.collecting.collector import Collector
from npnet_training.collecting.items import items
from npnet_training.collecting.run import Progress, collect
from npnet_training.collecting.settings import CollectSettings
from npnet_training.command import run

EPILOG = """example:
  npnet-collect --model sdxl --prompts prompts.txt --output pairs --scorers pickscore --device cuda

exit status: 0, 1 if no pair was kept, 2 for an error; after an error or a kill, run it again with --resume
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(CollectSettings, "npnet-collect", EPILOG, argv, _work)


def _work(settings: CollectSettings) -> int:
    if settings.dry_run:
        _estimate(settings)
        return 0
    progress = collect(settings, _report)
    print(f"{settings.output}: {progress.pairs} pairs, {progress.kept} kept ({_share(progress)})")
    if not progress.kept:
        print("no pair was kept: try another --rule, --redenoise.guidance or more prompts", file=sys.stderr)
        return 1
    return 0


def _report(progress: Progress) -> None:
    rates = f"{progress.new / progress.seconds:.2f} pairs/s"
    if progress.images:
        rates += f", {progress.images / progress.seconds:.2f} images/s"
    print(f"{progress.pairs} pairs, {_share(progress)} kept, {rates}", file=sys.stderr, flush=True)


def _share(progress: Progress) -> str:
    return f"{100 * progress.kept / max(1, progress.pairs):.1f} %"


def _plan(settings: CollectSettings, name: str) -> None:
    from npnet_training.planning.estimates import describe_collection, plan_collection
    from npnet_training.planning.gpus import get_gpu
    from npnet_training.planning.parts import parts_of

    gpu, parts = get_gpu(name), parts_of(settings.model, settings.size_of(0), offline=settings.offline)
    pairs = sum(len(item.prompts) for item in items(settings))
    redenoise = settings.redenoise if settings.targets else None
    sample = settings.sample if settings.scorers else None
    print(describe_collection(plan_collection(parts, pairs, gpu, redenoise, sample), parts, gpu))


def _estimate(settings: CollectSettings) -> None:
    if settings.gpu is not None:
        _plan(settings, settings.gpu)
        return
    collector = Collector(settings)
    count, first = 0, None
    for item in items(settings):
        first = first or item
        count += len(item.prompts)
    if first is None:
        return
    collector.make(first)  # the first batch also warms up
    began = time.perf_counter()
    pairs, _, _ = collector.make(first)
    seconds = (time.perf_counter() - began) * count / len(pairs)
    size = 2 * pairs.target[0].numel() * count
    print(
        f"{count} pairs, about {seconds / 60:.1f} minutes on one worker like this and {size / 1e6:.1f} MB, "
        f"measured on {len(pairs)} pairs, of which {sum(pairs.kept)} were kept; nothing was written"
    )

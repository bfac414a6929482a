"""What a cluster's driver costs: the share of a core that so many workers need, on paper from measured times.

    python benchmarks/collecting.py --output DIR

Workers are stand-ins that do nothing, so that what is timed is all but their work: reading prompts, cutting
them into items, asking which are done, Ray's sending and waiting. From the time of an item here follows the
share of the driver's time that a number of workers needs whose items take so long each; below 1 their
throughput is as many times that of one worker. Memory is that of the driver between a tenth of the items and
the last. Nothing is reported unless every item came back once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from rich.console import Console
from rich.table import Table

from harness import environment, write_json
from npnet_training.collecting.cluster import RayPool
from npnet_training.collecting.items import Item, done, items, shards_there
from npnet_training.collecting.settings import CollectSettings
from npnet_training.pairs import PairInfo

WORKERS = (1, 8, 64)
ITEM_SECONDS = (5.0, 30.0)
"""Of a batch of 16 pairs: of SDXL on an H100, as `npnet_training.planning` estimates, 34 with images."""
KEPT = 16


class Idle:
    """A worker that does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def there(self) -> bool:
        """Whether it is."""
        return True

    def collect(self, item: Item) -> int:
        """All pairs are kept, and none is made."""
        return KEPT


def main() -> int:
    """Measure; 1 if an item was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument(
        "--actors", type=int, default=2, help="stand-ins on this machine; default: %(default)s"
    )
    parser.add_argument("--output", type=Path, help="folder for collecting-cpu.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.txt")
        prompts.write_text("".join(f"a picture of the thing number {n}\n" for n in range(options.prompts)))
        settings = CollectSettings(
            model="shapes",
            prompts=str(prompts),
            output=Path(folder, "pairs"),
            ray="local",
            workers=options.actors,
        )
        found = measure(settings)
    expected = -(-options.prompts // settings.batch)
    if found["items"] != expected:
        print(f"expected {expected} items, given {found['items']}: nothing is reported", file=sys.stderr)
        return 1
    shares = {
        f"{workers} workers, {seconds:g} s an item": workers * found["driver_seconds"] / seconds
        for workers in WORKERS
        for seconds in ITEM_SECONDS
    }
    table = Table("workers and their items", "share of the driver's core")
    for name, share in shares.items():
        table.add_row(name, f"{share:.4f}")
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{found['items']} items of {options.prompts} prompts; memory of the driver grew by "
        f"{found['memory_growth']:+.1%} from a tenth of them to the last"
    )
    if options.output:
        content = {"environment": environment(torch.device("cpu")), "prompts": options.prompts}
        content |= {"actors": options.actors, **found, "driver_share": shares}
        write_json(options.output / "collecting-cpu.json", content)
    return 0


def measure(settings: CollectSettings) -> dict[str, Any]:
    """Items, seconds of the driver for one (median over thousandths of them), growth of its memory."""
    from npnet_training.collecting import cluster

    own = cluster.Worker
    cluster.Worker = Idle  # type: ignore[misc,assignment]
    process = psutil.Process()
    used: list[float] = []
    times: list[float] = []
    count = 0
    total = sum(1 for _ in items(settings))
    step = max(1, total // 1000)
    try:
        with RayPool(settings) as pool:
            began = time.process_time()
            for count, _ in enumerate(pool.collect_all(_fresh(settings)), 1):
                if count % step == 0:
                    now = time.process_time()
                    times.append((now - began) / step)
                    began = now
                    used.append(process.memory_info().rss)
    finally:
        cluster.Worker = own  # type: ignore[misc]
        import ray

        ray.shutdown()
    early = used[len(used) // 10]
    return {
        "items": count,
        "driver_seconds": statistics.median(times),
        "driver_seconds_p90": sorted(times)[int(0.9 * (len(times) - 1))],
        "memory_growth": used[-1] / early - 1,
    }


def _fresh(settings: CollectSettings) -> Iterator[Item]:
    """Items as a run asks for them, of a dataset that has no shard."""
    about = PairInfo("stand-in", None, (1, 1, 1), (1, 1), {})
    there = shards_there(settings)
    return (item for item in items(settings) if done(settings, item, about, there) is None)


if __name__ == "__main__":
    sys.exit(main())

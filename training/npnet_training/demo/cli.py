"""Command line of `npnet-demo`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec

from npnet_runtime.integrations.diffusers.loading import quiet_loading
from npnet_training.command import run
from npnet_training.demo.checks import RESULTS
from npnet_training.demo.demonstration import GALLERY, check_all, demonstrate
from npnet_training.demo.settings import DemoSettings
from npnet_training.errors import DemoError

EPILOG = """examples:
  npnet-demo
  npnet-demo --prompts "a red circle left of a blue square" --seeds 8 --output circle
  npnet-demo --world shapes --model both --compare best-of-2 --prompts 400

No network is needed. exit status: 0, 2 for an error, 130 interrupted; then nothing is left behind
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(DemoSettings, "npnet-demo", EPILOG, argv, _work, stopped="nothing was written")


def _work(settings: DemoSettings) -> int:
    if find_spec("rich") is None:
        raise DemoError("npnet-demo needs rich: pip install 'npnet-runtime[demo]'")
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - began:5.1f} s] {text}", file=sys.stderr, flush=True)

    check_all(settings)  # before the slow imports of what follows
    quiet_loading()
    results = demonstrate(settings, say).results
    from npnet_training.demo.tables import about, tables, timing

    console = Console(markup=False, highlight=False, soft_wrap=True)
    for line in about(results):
        console.print(line)
    for table in tables(results):
        shown = Table(title=table.title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
        for number, head in enumerate(table.header):
            shown.add_column(head, justify="left" if number < 2 else "right")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for line in timing(results):
        console.print(line)
    grids = ", ".join(f"grid-{name}.png" for name in results["denoisers"])
    console.print(f"{settings.output / GALLERY}, {grids}, {RESULTS}; {time.perf_counter() - began:.0f} s")
    return 0

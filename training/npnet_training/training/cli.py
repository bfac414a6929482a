"""Command line of `npnet-train`."""

from __future__ import annotations

import sys
from typing import Any

from npnet_training.command import run
from npnet_training.training.settings import TrainSettings

EPILOG = """example:
  npnet-train --data pairs --output run
  accelerate launch --multi_gpu -m npnet_training.training.cli --data pairs --output run

exit status: 0, 1 if golden noise has collapsed, 2 for an error; after a kill, run it again with --resume
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(TrainSettings, "npnet-train", EPILOG, argv, _work)


def _work(settings: TrainSettings) -> int:
    from npnet_runtime.golden_statistics import STATISTICS
    from npnet_training.training.loop import BEST, LAST, train

    if settings.dry_run:
        from npnet_training.training.estimate import estimate

        print(estimate(settings))
        return 0
    summary = train(settings, _report)
    last = summary["last"]
    if summary["collapsed"]:
        print(
            f"{settings.output / LAST}: golden noise has collapsed: {'; '.join(summary['collapsed'])}; "
            "npnet-export will refuse it",
            file=sys.stderr,
        )
        return 1
    name = BEST if summary["best_validation_loss"] is not None else LAST
    worth = (
        f"the network explains {100 * last['explained']:.1f} % of the change (mse {last['mse']:.5g}, "
        f"identity {last['identity']:.5g})"
    )
    if not summary["targets"]:
        looks = ", ".join(f"{name.replace('_', ' ')} {last[name]:.2f}" for name in STATISTICS)
        worth = f"golden noise: {looks}"
    print(f"{settings.output / name}: after {summary['steps']} steps {worth}")
    return 0


def _report(entry: dict[str, Any]) -> None:
    if "validation" in entry:
        found = entry["validation"]
        text = (
            f"validation: loss {found['loss']:.5g}, mse {found['mse']:.5g}, identity {found['identity']:.5g}"
        )
    elif "collapsed" in entry:
        text = f"golden noise has collapsed: {'; '.join(entry['collapsed'])}"
    else:
        text = f"loss {entry['loss']:.5g}, {entry['pairs_per_second']:.1f} pairs/s"
    print(f"step {entry['step']}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""The console scripts: light, so that Ctrl-C is heeded also in the seconds in which a command is imported."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module


def _run(module: str) -> int:
    try:
        status: int = import_module(module).main()
        return status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


export = partial(_run, "npnet_export.cli")
generate = partial(_run, "npnet_runtime.generate.cli")
collect = partial(_run, "npnet_training.collecting.cli")
train = partial(_run, "npnet_training.training.cli")
evaluate = partial(_run, "npnet_training.evaluation.cli")
demo = partial(_run, "npnet_training.demo.cli")

"""The console scripts: light, so that Ctrl-C is heeded also in the seconds in which a command is imported."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module

from npnet_runtime.interruption import interrupted_status
from npnet_training.cores import announce, share_cores
from npnet_training.help import stored


def _run(command: str, module: str) -> int:
    arguments = sys.argv[1:]
    try:
        if text := stored(command, arguments):
            print(text, end="")
            return 0
        announce(share_cores(command, arguments), arguments)
        status: int = import_module(module).main()
        return status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return interrupted_status()


export = partial(_run, "npnet-export", "npnet_export.cli")
generate = partial(_run, "npnet-generate", "npnet_runtime.generate.cli")
collect = partial(_run, "npnet-collect", "npnet_training.collecting.cli")
train = partial(_run, "npnet-train", "npnet_training.training.cli")
evaluate = partial(_run, "npnet-evaluate", "npnet_training.evaluation.cli")
headroom = partial(_run, "npnet-headroom", "npnet_training.headroom.cli")
demo = partial(_run, "npnet-demo", "npnet_training.demo.cli")

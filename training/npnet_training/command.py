"""What the command lines of this package share: settings, their echo, and errors as exit statuses."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

from npnet_runtime.errors import NPNetError
from npnet_runtime.interruption import STOPPING, handling, interrupted_status
from npnet_training.settings import S, parse


def run(
    cls: type[S],
    prog: str,
    epilog: str,
    arguments: Sequence[str] | None,
    work: Callable[[S], int],
    *,
    stopped: str = "go on with --resume",
) -> int:
    """Parse and print the settings, and do the work.

    Args:
        cls: of the settings.
        prog: name of the command.
        epilog: text below the options in `--help`.
        arguments: of the command line; None for those of the process.
        work: what the command does; returns its exit status.
        stopped: what is said of an interruption, and of a disk that is full.

    Returns:
        That status, 2 after an error of this project or of the operating system, 130 if it was
        interrupted, by Ctrl-C, SIGTERM or SIGHUP.
    """
    try:
        # SIGTERM and a closed terminal unwind as Ctrl-C does, so that nothing temporary is left behind.
        with handling(signal.default_int_handler, *STOPPING):
            settings = parse(cls, prog, arguments, epilog=epilog)
            print(settings.to_yaml(), file=sys.stderr)
            return work(settings)
    except NPNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # wherever a file is written: the disk may be full
        hint = "make room, or check the permissions"
        print(f"error: cannot be read or written: {error}; {hint}; {stopped}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; {stopped}", file=sys.stderr)
        return interrupted_status()

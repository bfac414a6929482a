"""Threads of a command on the CPU, set before torch is imported: OpenMP reads its settings only then.

OpenMP's threads spin while they wait for one another. Where one of them has to share its core with another
process, all of them wait for it, spinning, at every step of a small network: a collection that takes 35 s by
one thread takes 335 s by two beside one busy process. So the small models of this package get one thread,
which is within a fifth of the best on quiet cores too; larger ones get the cores that nobody uses when the
command starts, and spin for a bounded time. Whatever the user has set stays.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from npnet_runtime.threads import VARIABLE, available_cores

USERS_OWN = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "GOMP_CPU_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    VARIABLE,
)
SPINS = "10000"
"""Turns of libgomp's loop before a waiting thread sleeps; it takes millions by default. Fewer cost a sixth on
quiet cores, more a third beside a busy process."""
_STAT = Path("/proc/stat")
_WORLD = "(?:shapes|scenes)"  # not asked of what would import torch
_SMALL = re.compile(rf"(?:--[\w.-]+=)?{_WORLD}(?:-[\w-]+)?")
_PAIRS = "npnet-pairs.json"
_LOOK = 0.05  # seconds over which other processes are observed
_SILENT = {"--quiet", "--help", "-h", "--version", "--list"}


def share_cores(
    command: str, arguments: Sequence[str], environment: MutableMapping[str, str] = os.environ
) -> str | None:
    """Set the number of threads of this process, unless the user has.

    Args:
        command: what is run, such as `npnet-collect`.
        arguments: of its command line.
        environment: that OpenMP will read.

    Returns:
        A line that says so; None where nothing was set.
    """
    if any(name in environment for name in USERS_OWN):
        return None
    small = command == "npnet-demo" or is_small(arguments)
    cores = available_cores()
    threads = 1 if small else max(1, cores - busy_cores())
    environment["OMP_NUM_THREADS"] = str(threads)
    environment["GOMP_SPINCOUNT"] = SPINS
    why = "a small model" if small else f"of {cores} cores, those that are free"
    return f"{command}: {threads} thread{'s' * (threads > 1)} ({why}); OMP_NUM_THREADS sets another number"


def announce(line: str | None, arguments: Sequence[str]) -> None:
    """Print the line, where a command was not asked to be quiet or for something to read."""
    if line and not _SILENT & {*arguments}:
        print(line, file=sys.stderr)


def is_small(arguments: Sequence[str]) -> bool:
    """Whether a command line is about a model that comes with the package, or pairs that were made by one."""
    for argument in arguments:
        if _SMALL.fullmatch(argument):
            return True
        path = Path(argument.partition("=")[2] or argument)
        for file, said in ((path / _PAIRS, rf'"model": "{_WORLD}'), (path, rf"^\s*model: {_WORLD}")):
            if file.suffix in (".json", ".yaml", ".yml") and _holds(file, said):
                return True
    return False


def busy_cores() -> int:
    """Cores that processes keep busy now, on Linux; else 0."""
    first = _ticks()
    if not first:
        return 0
    time.sleep(_LOOK)
    second, busy = _ticks(), 0.0
    for core in first.keys() & second.keys() & _own_cores(first):
        idle, total = (second[core][index] - first[core][index] for index in (0, 1))
        busy += 1 - idle / total if total > 0 else 0
    return round(busy)


def _ticks() -> dict[int, tuple[int, int]]:
    """Idle and all ticks of each core since the start of the machine."""
    try:
        lines = _STAT.read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, *numbers = line.split()
        if re.fullmatch(r"cpu\d+", name):
            ticks = [int(number) for number in numbers[:8]]
            found[int(name[3:])] = (ticks[3] + ticks[4], sum(ticks))
    return found


def _own_cores(all_cores: Mapping[int, object]) -> set[int]:
    try:
        return set(os.sched_getaffinity(0))
    except AttributeError:
        return set(all_cores)


def _holds(file: Path, pattern: str) -> bool:
    try:
        return re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE) is not None
    except (OSError, UnicodeDecodeError):
        return False

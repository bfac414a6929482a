"""How many threads a session on the CPU may use: what was asked for, and no more than this process has."""

from __future__ import annotations

import math
import os
from pathlib import Path

from npnet_runtime.errors import BackendError

VARIABLE = "NPNET_THREADS"
_CGROUP_2, _CGROUP_1 = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu")


def choose_threads(threads: int | None = None) -> int:
    """Threads for one session of ONNX Runtime or OpenVINO.

    Args:
        threads: asked for by the caller; then counts the environment variable `NPNET_THREADS`, then as many
            as PyTorch would use (`torch.set_num_threads`, `OMP_NUM_THREADS`), of the cores there are.

    Raises:
        BackendError: no positive number.
    """
    import torch  # here, so that a command may ask for the cores before it is imported

    for name, given in (("threads", threads), (VARIABLE, os.environ.get(VARIABLE) or None)):
        if given is not None:
            return parse_threads(name, given)
    return min(torch.get_num_threads(), available_cores())


def parse_threads(name: str, given: object) -> int:
    """A number of threads as somebody gave it.

    Raises:
        BackendError: no positive whole number.
    """
    text = "" if isinstance(given, bool) else str(given).strip()
    if not text.isdecimal() or int(text) < 1:
        raise BackendError(f"{name}: expected a number of threads of 1 or more, given {given!r}")
    return int(text)


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group, rounded up."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # neither macOS nor Windows has it
        cores = os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cgroup_quota() -> float | None:
    """Cores' worth of time that the control group may take, where it is limited (`docker run --cpus`)."""
    try:
        if _CGROUP_2.is_file():
            limit, period = _CGROUP_2.read_text().split()
        else:
            limit, period = ((_CGROUP_1 / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = float(limit) / float(period)
    except (OSError, ValueError):  # `max`, or no such files
        return None
    return cores if cores > 0 else None

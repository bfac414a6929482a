"""Where a run is, and the log of how it came there."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npnet_runtime.files import atomic_file

Report = Callable[[dict[str, Any]], None]
LOG, TENSORBOARD = "log.jsonl", "tensorboard"


@dataclass
class Progress:
    """Where a run is; everything of it that is not a tensor."""

    step: int = 0
    best: float = math.inf
    worse: int = 0
    skipped: int = 0
    collapsed: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def judge(self, loss: float, min_improvement: float) -> bool:
        """Count a validation; whether it is better than the best by that share of it."""
        # A reward's loss may be below zero.
        limit = self.best - abs(self.best) * min_improvement
        if math.isnan(limit) or loss < limit:
            self.best, self.worse = loss, 0
            return True
        self.worse += 1
        return False


class RunLog:
    """A run's history in files, `log.jsonl` and `tensorboard/`, as it goes.

    What a killed process logged after its last training state will be logged again, so it is forgotten.

    Args:
        folder: of the run.
        progress: that it begins from.
        report: called with every entry that is written.

    Raises:
        OSError: the folder cannot be written, or is full; so does every method.
    """

    def __init__(self, folder: Path, progress: Progress, report: Report) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path, self._report = folder / LOG, report
        with atomic_file(self._path) as temporary:
            temporary.write_text("".join(map(_line, progress.history)), encoding="utf-8")
        _wait_for_a_new_second(folder / TENSORBOARD)
        self._events = SummaryWriter(str(folder / TENSORBOARD), purge_step=progress.step + 1)

    def write(self, entry: dict[str, Any]) -> None:
        """Append an entry: its step, and its numbers or, by `validation`, those of a validation, or words."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(entry))
        part = "validation" if "validation" in entry else "train"
        for name, value in entry.get("validation", entry).items():
            if name not in ("step", "collapsed"):
                self._events.add_scalar(f"{part}/{name}", value, entry["step"])
        self._events.flush()
        self._report(entry)

    def close(self) -> None:
        """Close the files."""
        self._events.close()


def _wait_for_a_new_second(folder: Path) -> None:
    """TensorBoard reads event files by the second in their names, and of one second in any order."""
    taken = {path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")}
    while str(int(time.time())) in taken:
        time.sleep(0.02)


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"

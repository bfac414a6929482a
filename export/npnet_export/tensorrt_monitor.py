"""Stages of a TensorRT build, and the way to stop one."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any


def new_monitor(trt: ModuleType, name: str, stage: Callable[[str], None]) -> Any:
    """A progress monitor that names the phases; no percentage, because nobody knows one.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        name: of what is built.
        stage: told each phase as it begins, from the building thread.

    Returns:
        A `trt.IProgressMonitor`; the build stops soon after its `cancelled` is set.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.cancelled = False
            self._depth: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            depth = self._depth.get(parent_phase, 0) + 1 if parent_phase else 0
            self._depth[phase_name] = depth
            if depth <= 1:  # below that they come by the thousand
                stage(f"{name}: {phase_name.lower()}")

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()

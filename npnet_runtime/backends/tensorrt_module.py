"""TensorRT and TensorRT for RTX: two modules with one interface, and a log that ends up in errors."""

from __future__ import annotations

import importlib
from collections import deque
from types import ModuleType
from typing import Any

from npnet_runtime.errors import BackendError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx-cu13"}
SUFFIX = ".engine"
_TAIL = 8


def import_tensorrt(engine: str) -> ModuleType:
    """The module that runs and builds engines of this kind.

    Args:
        engine: a key of `MODULES`.

    Raises:
        BackendError: it is not installed, or its libraries do not load.
    """
    try:
        return importlib.import_module(MODULES[engine])
    except (ImportError, OSError, RuntimeError) as error:  # its __init__ loads libraries by hand
        raise BackendError(
            f"--engine {engine} needs the module {MODULES[engine]}, which cannot be imported ({error}): "
            f"pip install {INSTALL[engine]}"
        ) from error


def new_log(trt: ModuleType) -> Any:
    """A logger for builder, parser and runtime, which remembers instead of printing.

    Returns:
        A `trt.ILogger` with `lines`, every message at least as severe as INFO and the builder's list of
        the engine's layers, and `tail()`, the last warnings and errors as text.
    """

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self._severe: deque[str] = deque(maxlen=_TAIL)

        def log(self, severity: Any, message: str) -> None:
            # Called from threads of the library; an exception here would end the process.
            # The layers are what the engine inspector shows of a loaded engine; this needs no GPU.
            if severity <= trt.ILogger.Severity.INFO or message.startswith("Layers:"):
                self.lines.append(f"[{severity.name}] {message}")
            if severity <= trt.ILogger.Severity.WARNING:
                self._severe.append(message)

        def tail(self) -> str:
            return "\n".join(f"  {message}" for message in self._severe) or "  (it logged nothing)"

    return Log()

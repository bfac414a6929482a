"""What an export needs of this machine, looked for before any weights are fetched."""

from __future__ import annotations

import os
import re
import shutil
import tempfile

from npnet_export.errors import ExportError
from npnet_runtime.backends.machine import installed_version
from npnet_runtime.backends.selection import satisfies

_ONNX = {"torch": ">=2.11", "onnx": ">=1.18", "onnxscript": ">=0.5.4"}
# Packages that build an engine. Older versions of torch do not export graphs with a batch of any size.
BUILDS_WITH: dict[str, dict[str, str]] = {
    "torch": {},
    "onnxruntime": _ONNX,
    "openvino": _ONNX,
    "aoti": {"torch": ">=2.9"},
    "tensorrt": _ONNX,
    "tensorrt-rtx": _ONNX,
}
# Packages that run it, of those that PyTorch does not run.
RUNS_WITH = {"onnxruntime": {"onnxruntime": ">=1.22"}, "openvino": {"openvino": ">=2026.1"}}
DOWNLOADS_WITH = {"huggingface_hub": ">=0.34"}
_EXTRAS = {
    "onnxruntime": "npnet-runtime[cpu]' (or [gpu], for CUDA)",
    "openvino": "npnet-runtime[openvino]'",
    "torch": "torch{condition}'",
}
_EXPORT = "npnet-runtime[export]'"
# What the command lines of compilers hold without quotes.
_PLAIN = re.compile(r"[\w./\\:~+-]+")


def missing(engine: str) -> str | None:
    """What an engine needs to be written and run that is not there; None if all is."""
    try:
        check_needs(engine, verify=True, downloads=False)
    except ExportError as error:
        return str(error)
    return None


def check_needs(engine: str, *, verify: bool, downloads: bool) -> None:
    """Look for the packages and the compiler that an export will use.

    Args:
        engine: kind of engine.
        verify: it will be run.
        downloads: the weights are on the hub.

    Raises:
        ExportError: some are missing or too old; all of them are named, with the commands that bring them.
    """
    needs = {
        **BUILDS_WITH[engine],
        **(RUNS_WITH.get(engine, {}) if verify else {}),
        **(DOWNLOADS_WITH if downloads else {}),
    }
    problems, commands = [], []
    for package, condition in needs.items():
        found = installed_version(package)
        if found is None or not satisfies(found, condition):
            problems.append(f"{package} {condition} ({found or 'not installed'})")
            commands.append("pip install '" + _EXTRAS.get(package, _EXPORT).format(condition=condition))
    if problems:
        raise ExportError(
            f"--engine {engine} needs {', '.join(problems)}: {'; '.join(dict.fromkeys(commands))}"
        )
    if engine == "aoti":
        _check_compiler()


def _check_compiler() -> None:
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")
    if not any(map(shutil.which, compilers)):
        raise ExportError(
            "--engine aoti needs a C++ compiler, and none is there: apt install g++, or set CXX to one"
        )
    folder = tempfile.gettempdir()
    if not _PLAIN.fullmatch(folder):
        raise ExportError(
            f"--engine aoti compiles in the folder that TMPDIR names, and the compiler's command line cannot "
            f"hold its blanks and quotes: given {folder!r}; set TMPDIR to a plainer path, such as /tmp"
        )

"""What `--help` of each command prints, kept as text: to make it takes torch, which takes seconds to import.

`python -m npnet_training.help` writes the texts anew; a test compares them with the commands.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from unittest import mock

FOLDER = Path(__file__).parent
COLUMNS = "100"
MODULES: Mapping[str, str] = {
    "npnet-export": "npnet_export.cli",
    "npnet-export inspect": "npnet_export.cli",
    "npnet-export verify": "npnet_export.cli",
    "npnet-export repro": "npnet_export.cli",
    "npnet-generate": "npnet_runtime.generate.cli",
    "npnet-collect": "npnet_training.collecting.cli",
    "npnet-train": "npnet_training.training.cli",
    "npnet-evaluate": "npnet_training.evaluation.cli",
    "npnet-headroom": "npnet_training.headroom.cli",
    "npnet-demo": "npnet_training.demo.cli",
}


def stored(command: str, arguments: Sequence[str]) -> str | None:
    """The text for a command line that asks for nothing but help; None for others.

    Args:
        command: such as `npnet-export`.
        arguments: of its command line.
    """
    if not arguments or arguments[-1] not in ("-h", "--help"):
        return None
    name = " ".join((command, *arguments[:-1]))
    return file_of(name).read_text(encoding="utf-8") if name in MODULES else None


def file_of(name: str) -> Path:
    """Where the text of a key of `MODULES` is."""
    return FOLDER / f"{name.replace(' ', '-')}.txt"


def render(name: str) -> str:
    """The text as the command itself makes it."""
    words = name.split()[1:]
    output = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS=COLUMNS),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        import_module(MODULES[name]).main([*words, "--help"])
    return output.getvalue()

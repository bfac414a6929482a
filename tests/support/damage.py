"""Files that were altered on the way."""

from __future__ import annotations

from pathlib import Path


def alter(path: Path) -> None:
    """Flip a bit of the last byte: the size stays, the hash does not."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

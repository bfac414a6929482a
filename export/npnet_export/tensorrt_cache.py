"""The timing cache of TensorRT: measured once per GPU, kept in the user's own cache folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from npnet_runtime.files import atomic_file


def timing_cache_path(engine: str, version: str, capabilities: tuple[str, ...]) -> Path:
    """Where the timings of this version and GPU are kept: below `XDG_CACHE_HOME`, or `~/.cache`."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npnet-runtime"
    return root / f"{engine}-{version}-sm{'-'.join(capabilities)}.timing"


def read_timing_cache(config: Any, path: Path) -> Any:
    """Attach the cache to a builder configuration; an empty one where there is none or it does not fit."""
    content = path.read_bytes() if path.is_file() else b""
    for candidate in (content, b""):
        cache = config.create_timing_cache(candidate)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def write_timing_cache(cache: Any, path: Path) -> None:
    """Keep the timings; of two builds at once the last one's stay, whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(bytes(cache.serialize()))

"""Weights from the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from npnet_runtime.errors import DownloadError
from npnet_runtime.files import sha256
from npnet_runtime.weights.models import Source

_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<filename>[\w./-]+))?")


def looks_like_hub_id(text: str) -> bool:
    """Whether `text` has the form `owner/repository` or `owner/repository:file`, not that of a path."""
    suffix = Path(text).suffix in (".pth", ".pt", ".safetensors") and ":" not in text
    return _HUB_ID.fullmatch(text) is not None and not suffix and not text.startswith((".", "/", "~"))


def split_hub_id(text: str, default_filename: str) -> tuple[str, str]:
    """(repository, file) of `owner/repository[:file]`."""
    match = _HUB_ID.fullmatch(text)
    if match is None:
        raise DownloadError(f"expected owner/repository or owner/repository:file, given {text!r}")
    return match["repository"], match["filename"] or default_filename


def download(repository: str, filename: str, *, offline: bool = False) -> Path:
    """Fetch a file, with a progress bar, or find it in the cache.

    Args:
        repository: `owner/name` on the hub.
        filename: within the repository.
        offline: look in the cache only. The environment variable `HF_HUB_OFFLINE=1` does the same.

    Returns:
        Its path in the cache of huggingface_hub.

    Raises:
        DownloadError: huggingface_hub is missing, the hub cannot be reached, or has no such file.
    """
    try:
        from huggingface_hub import hf_hub_download, list_repo_files
        from huggingface_hub.errors import (
            EntryNotFoundError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError as error:
        raise DownloadError(
            "downloading weights needs huggingface_hub: pip install 'npnet-runtime[export]'"
        ) from error
    where = f"{repository}:{filename}"
    elsewhere = "or give a local file with --weights PATH, or try the pipeline with --random-weights 0"
    try:
        return Path(hf_hub_download(repository, filename, local_files_only=offline))
    except LocalEntryNotFoundError as error:
        reason = "is not in the cache, and offline mode is on" if offline else "cannot be downloaded"
        raise DownloadError(f"{where} {reason}; download it once with a connection, {elsewhere}") from error
    except EntryNotFoundError as error:
        found = ", ".join(sorted(list_repo_files(repository))[:20])
        raise DownloadError(
            f"{where}: the repository has no such file; it has {found}. "
            f"Choose one with --weights {repository}:FILE, {elsewhere}"
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(f"{where}: no such repository, or no access to it; {elsewhere}") from error
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"{where} cannot be downloaded ({error}); check the connection, {elsewhere}"
        ) from error


def hide_progress() -> None:
    """Show no bars of downloads in this process, where huggingface_hub is installed."""
    try:
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        return
    disable_progress_bars()


def download_first(sources: Sequence[Source], *, offline: bool = False) -> tuple[Path, Source]:
    """Fetch the first file of several that can be had.

    Args:
        sources: of the same weights.
        offline: see `download`.

    Returns:
        Its path in the cache, and which it was.

    Raises:
        DownloadError: none can be had, for the reasons given; or one is not the file that it should be.
    """
    reasons = []
    for source in sources:
        try:
            path = download(source.repository, source.filename, offline=offline)
        except DownloadError as error:
            reasons.append(str(error))
            continue
        if source.sha256 is not None and (found := sha256(path)) != source.sha256:
            raise DownloadError(
                f"{source}: expected the file with sha256 {source.sha256}, given {found}; "
                "pip install -U npnet-runtime if it was published anew, or name the file with --weights"
            )
        return path, source
    raise DownloadError("no source of the weights can be reached:\n  " + "\n  ".join(reasons))

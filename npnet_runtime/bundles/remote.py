"""Engine bundles on the Hugging Face hub: what is fetched, and what may be loaded of it.

A repository is anybody's, and the sha256 in a manifest come from where the files come from: they prove that a
download is whole, not that it is harmless. Bundles of data (ONNX graphs, safetensors) are read by parsers and
load; engines that are machine code run with all the rights of the process, and load only for who says so and
names the very commit that was looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from npnet_runtime.bundles.manifest import FILENAME, Manifest
from npnet_runtime.errors import BundleError, DownloadError
from npnet_runtime.weights.hub import looks_like_hub_id

CODE = ("aoti", "tensorrt", "tensorrt-rtx")
"""Engines whose files are machine code."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def names_a_repository(engine: object) -> bool:
    """Whether an engine is named as `owner/repository`, and neither that nor `owner` is a folder here.

    Nor `engines`, where `npnet-export` writes: who has not run it yet is not to wait for the hub.
    """
    return (
        isinstance(engine, str)
        and looks_like_hub_id(engine)
        and ":" not in engine
        and not engine.startswith("engines/")
        and not Path(engine).parent.exists()
    )


def fetch_bundle(repository: str, revision: str | None, *, trust_code: bool) -> tuple[Path, str]:
    """Fetch a bundle, or find it in the cache: its manifest first, then the files that it lists.

    Args:
        repository: `owner/name` on the hub.
        revision: branch, tag or commit; None for the newest.
        trust_code: load machine code, of a `revision` that is a commit.

    Returns:
        Its folder in the cache of huggingface_hub, and `owner/name@commit`.

    Raises:
        DownloadError: huggingface_hub is missing, or the hub cannot be reached and the cache has no such
            bundle.
        BundleError: the repository has no bundle, or one of machine code that is not trusted.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise DownloadError(
            f"{repository}: engines from the hub need huggingface_hub: pip install huggingface_hub"
        ) from error
    with _hub_errors(repository, revision):
        first = Path(hf_hub_download(repository, FILENAME, revision=revision))
    folder, commit = first.parent, first.parent.name
    manifest = Manifest.read(folder)
    if manifest.engine in CODE:
        _require_trust(repository, revision, commit, manifest, trust_code)
    for name in manifest.files:
        with _hub_errors(repository, revision):
            hf_hub_download(repository, name, revision=commit)
    return folder, f"{repository}@{commit}"


def _require_trust(
    repository: str, revision: str | None, commit: str, manifest: Manifest, trust_code: bool
) -> None:
    pinned = revision is not None and _COMMIT.fullmatch(revision) is not None
    if trust_code and pinned:
        return
    lacking = "trust_code=True"
    if not pinned:
        lacking += f" and a commit (revision={commit!r} is the newest)"
    raise BundleError(
        f"{repository}: an engine of {manifest.engine} is machine code, which can do whatever this process "
        f"can, and the checks of its manifest come from the same place; if you trust its owner pass {lacking}"
    )


@contextmanager
def _hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = repository + (f"@{revision}" if revision else "")
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{where}: no such folder; nor can the hub be reached, or the cache has no such engine: fetch it "
            f"once with a connection, or make one: npnet-export --model sdxl --output {repository}"
        ) from error
    except EntryNotFoundError as error:
        raise BundleError(
            f"{where}: expected an engine bundle, which has a {FILENAME} and the files it lists; found none. "
            f"Of weights an engine is made with: npnet-export --weights {repository}"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DownloadError(
            f"{where}: no such folder, and no such repository or revision on the hub, or no access to it; "
            f"make an engine with: npnet-export --model sdxl --output {repository}"
        ) from error
    except (OSError, ValueError) as error:
        raise DownloadError(f"{where} cannot be fetched ({error}); check the connection") from error

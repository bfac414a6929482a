"""An engine bundle on disk: read its manifest, then its files, each checked before it is used."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from npnet_runtime.bundles.manifest import FILENAME, BundleFile, Manifest
from npnet_runtime.bundles.remote import fetch_bundle, names_a_repository
from npnet_runtime.errors import BundleError
from npnet_runtime.files import atomic_directory, sha256
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.weights.models import MODELS
from npnet_runtime.weights.packaged import PACKAGED


@dataclass(frozen=True)
class EngineBundle:
    """A bundle whose manifest was read.

    Args:
        path: the folder.
        manifest: of the bundle.
        digest: sha256 of the manifest's text; names the engine.
        origin: `owner/repository@commit` of one from the hub, else None.
    """

    path: Path
    manifest: Manifest
    digest: str
    origin: str | None = None

    @classmethod
    def open(cls, path: str | Path, *, revision: str | None = None, trust_code: bool = False) -> EngineBundle:
        """Read the manifest of a bundle; no other file is touched.

        Args:
            path: its folder; or `owner/repository` of the hub, whose bundle is fetched.
            revision: branch, tag or commit of a repository.
            trust_code: load machine code from a repository; see `npnet_runtime.bundles.remote`.

        Raises:
            BundleError: no such folder, or its manifest is unreadable; or machine code from the hub that is
                not trusted.
            DownloadError: the hub has no such repository, or cannot be reached.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise BundleError(f"expected the path of an engine bundle, given {path!r}")
        origin = None
        if names_a_repository(path):
            path, origin = fetch_bundle(str(path), revision, trust_code=trust_code)
        elif revision is not None:
            raise BundleError(f"{path}: expected owner/repository with a revision, given a folder")
        path = Path(path).expanduser()
        if not path.is_dir():
            found = "a file" if path.exists() else "nothing"
            raise BundleError(
                f"{path}: expected the folder of an engine bundle, found {found}; "
                f"make one with: npnet-export --model sdxl --output {path}"
            )
        # A process may change its folder before the files are read, or the path is pickled.
        path = path.absolute()
        return cls(path, Manifest.read(path), sha256(path / FILENAME), origin)

    def read(self, name: str) -> bytes:
        """The bytes of one file, after they were found to be those that the manifest names.

        An engine is executable code, so what is checked is exactly what is then loaded.

        Raises:
            BundleError: the file is missing, unlisted, or was changed.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: the manifest lists no file {name!r}")
        expected = self.manifest.files[name]
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path / name}: cannot be read ({error}); {self._remedy()}") from error
        digest = hashlib.sha256(content).hexdigest()
        if len(content) != expected.bytes or digest != expected.sha256:
            raise BundleError(
                f"{self.path / name} is not the file the bundle was written with: expected "
                f"{expected.bytes} bytes with sha256 {expected.sha256[:16]}..., "
                f"given {len(content)} bytes with sha256 {digest[:16]}...; {self._remedy()}"
            )
        return content

    def rebuild_command(self) -> str:
        """The command that writes this bundle again."""
        manifest = self.manifest
        options: dict[str, Any] = {
            "--model": manifest.model if manifest.model in (*MODELS, *PACKAGED) else None,
            "--weights": manifest.weights.get("source") if "random_seed" not in manifest.weights else None,
            "--random-weights": manifest.weights.get("random_seed"),
            "--engine": manifest.engine,
            "--precision": manifest.precision,
            "--signs": "as-is" if manifest.signs == "as-is" else None,
            "--max-batch": manifest.max_batch,
            "--spectral": "polynomial" if manifest.spectral else None,
            "--spectral-tolerance": manifest.spectral.tolerance if manifest.spectral else None,
            **_for_pipeline(manifest),
            **manifest.build_options,
            "--output": self.path,
        }
        words = [word for name, value in options.items() for word in _words(name, value)]
        return shlex.join(["npnet-export", *words, "--force"])

    def _remedy(self) -> str:
        return f"write it again with: {self.rebuild_command()}"


def _for_pipeline(manifest: Manifest) -> dict[str, Any]:
    config = manifest.config
    if "for" not in manifest.weights or not isinstance(config, AnySizeConfig):
        return {}
    return {
        "--for": manifest.weights["for"],
        "--size": manifest.weights.get("size"),
        "--least-side": config.least_side,
        "--most-side": config.most_side,
        "--most-tokens": config.most_tokens,
    }


@contextmanager
def write_bundle(
    path: Path, *, force: bool = False
) -> Iterator[tuple[Path, Callable[[Manifest], EngineBundle]]]:
    """Write a bundle whole or not at all.

    Yields a temporary folder for the engine's files, and `seal(manifest)`, which lists the files
    found there in the manifest (whatever its `files` said), writes it, and returns the bundle under
    its temporary path. On leaving the block without an error the folder takes its final name.

    Args:
        path: the folder to make.
        force: replace a bundle that is there already. Anything but a bundle is never replaced.

    Raises:
        BundleError: `path` exists and may not be replaced, or cannot be written.
    """
    path = path.resolve()  # behind a link, so that the link stays
    check_target(path, force=force)
    try:
        with atomic_directory(path, replace=force) as folder:
            yield folder, lambda manifest: _seal(folder, manifest)
    except FileExistsError as error:
        raise BundleError(f"{path} appeared while the bundle was written; it was left as it is") from error
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: cannot write the bundle ({error}); choose another --output") from error


def check_target(path: Path, *, force: bool, need_bytes: int = 0) -> None:
    """Whether a bundle can be written to `path`, asked before the work starts.

    Args:
        path: the folder to make.
        force: whether a bundle that is there may be replaced.
        need_bytes: free space that the bundle will take.

    Raises:
        BundleError: it cannot.
    """
    if path.exists():
        if not path.is_dir() or (any(path.iterdir()) and not (path / FILENAME).is_file()):
            raise BundleError(f"{path} exists and is no engine bundle; choose another --output")
        if any(path.iterdir()) and not force:
            raise BundleError(f"{path} holds a bundle already; pass --force to replace it")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise BundleError(f"{path}: {parent} is a file; choose another --output")
    try:
        with tempfile.TemporaryDirectory(prefix=".npnet-", dir=parent):
            free = shutil.disk_usage(parent).free
    except OSError as error:
        raise BundleError(f"{path}: {parent} cannot be written ({error}); choose another --output") from error
    if free < need_bytes:
        raise BundleError(
            f"{path}: expected {need_bytes:,} bytes of free space, given {free:,}; "
            f"free some, or choose another --output"
        )


def _words(name: str, value: Any) -> list[str]:
    """An option as the command line takes it: a flag, one value, or the option repeated."""
    if value is None or value is False:
        return []
    if value is True:
        return [name]
    return [word for item in (value if isinstance(value, list) else [value]) for word in (name, str(item))]


def _seal(folder: Path, manifest: Manifest) -> EngineBundle:
    files = {
        file.name: BundleFile(file.stat().st_size, sha256(file))
        for file in sorted(folder.iterdir())
        if file.name != FILENAME
    }
    (folder / FILENAME).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")
    return EngineBundle.open(folder)

"""Where ComfyUI keeps engines and weights: its registry of folders, and what may be named in a widget."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from npnet_runtime.bundles.manifest import FILENAME
from npnet_runtime.errors import InputError

FOLDER = "golden_noise"
"""Name in the registry (`extra_model_paths.yaml`), and of the folder in ComfyUI's `models`."""
OLD_FOLDERS = ("npnet", "npnets")
"""Those of other nodes, of which earlier versions shared the first: read too."""
WEIGHTS = (".pth", ".pt", ".safetensors")
NO_ENGINE = f"none yet: npnet-export --model sdxl --output models/{FOLDER}/sdxl"
NO_WEIGHTS = f"none yet: put sdxl.pth into models/{FOLDER}"
_DEPTH = 3


def register_folders() -> None:
    """Tell ComfyUI of the folders; those of `extra_model_paths.yaml` are known already, and come first."""
    try:
        import folder_paths  # ComfyUI's
    except ImportError:
        return
    for name in (FOLDER, *OLD_FOLDERS):
        folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, name))
    try:
        os.makedirs(os.path.join(folder_paths.models_dir, FOLDER), exist_ok=True)
    except OSError:
        return  # models that cannot be written; nothing is in there, then


def folders() -> list[Path]:
    """The folders of engines and weights; none outside of ComfyUI."""
    try:
        import folder_paths
    except ImportError:
        return []
    return [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]


def engine_names() -> list[str]:
    """Engine bundles in these folders, as a widget names them, or the one entry that says how to make one."""
    found = {
        folder.relative_to(root).as_posix()
        for root in folders()
        for folder, _ in _walk(root)
        if folder != root and (folder / FILENAME).is_file()
    }
    return sorted(found) or [NO_ENGINE]


def weights_names() -> list[str]:
    """Checkpoints in these folders, likewise."""
    found = {
        (folder / name).relative_to(root).as_posix()
        for root in folders()
        for folder, names in _walk(root)
        if not (folder / FILENAME).is_file()
        for name in names
        if name.lower().endswith(WEIGHTS)
    }
    return sorted(found) or [NO_WEIGHTS]


def find(name: str, widget: str, how: str) -> Path:
    """The file or folder that a widget names: within the folders above, or by an absolute path.

    Args:
        name: as it was chosen, linked or typed: quotes and blanks around it do no harm.
        widget: its name, for messages.
        how: to come by one, likewise.

    Raises:
        InputError: nothing is meant, or what is meant is not there or outside of the folders.
    """
    text = name.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
    if not text or text.startswith("none yet:"):
        raise InputError(f"{widget}: nothing is chosen; {how}")
    path = Path(text).expanduser()
    if ".." in path.parts:
        raise InputError(
            f"{widget}: expected a name from the list or an absolute path, given {text!r} with '..'"
        )
    if path.is_absolute():
        return path
    known = folders()
    for folder in known:
        if (folder / path).exists():
            return folder / path
    if known:
        raise InputError(
            f"{widget}: no {text!r} in {', '.join(map(str, known))}; {how}, then press R to refresh"
        )
    return path  # outside of ComfyUI


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names of their files, not far down, without hidden ones."""
    for folder, below, names in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        bundle = FILENAME in names and depth > 0
        below[:] = [] if bundle or depth >= _DEPTH else [name for name in below if not name.startswith(".")]
        yield Path(folder), names

"""`python -m npnet_runtime.integrations.comfyui COMFYUI`: put the nodes into a ComfyUI."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from npnet_runtime.errors import NPNetError
from npnet_runtime.files import atomic_directory

NAME = "npnet-runtime"
LOADER = '''"""Nodes of the package npnet-runtime, which pip installs and updates."""

from npnet_runtime.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
'''
EXAMPLES = "example_workflows"


def install(comfyui: Path) -> Path:
    """Make the folder in `custom_nodes` that loads the nodes and shows the examples.

    Args:
        comfyui: folder of a ComfyUI.

    Returns:
        The folder; one of an earlier version is replaced.

    Raises:
        NPNetError: no ComfyUI, or another thing of that name.
        OSError: the folder cannot be written.
    """
    nodes = comfyui.expanduser() / "custom_nodes"
    if not nodes.is_dir():
        raise NPNetError(f"{comfyui}: expected the folder of a ComfyUI, with custom_nodes in it")
    target = nodes / NAME
    own = target.is_dir() and not target.is_symlink() and (target / "__init__.py").is_file()
    if target.exists() and not (own and (target / "__init__.py").read_text(encoding="utf-8") == LOADER):
        raise NPNetError(
            f"{target} exists, and was not made by this command, such as a clone; remove one of them"
        )
    with atomic_directory(target, replace=True) as folder:
        (folder / "__init__.py").write_text(LOADER, encoding="utf-8")
        shutil.copytree(Path(__file__).parent / EXAMPLES, folder / EXAMPLES, copy_function=shutil.copyfile)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        Its exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m npnet_runtime.integrations.comfyui", description="Put the nodes into a ComfyUI."
    )
    parser.add_argument("comfyui", type=Path, nargs="?", default=Path(), help="its folder; default: this one")
    try:
        print(f"wrote {install(parser.parse_args(arguments).comfyui)}; restart ComfyUI")
    except (NPNetError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

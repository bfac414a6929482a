"""The order of packages and rooms: the contracts in `pyproject.toml` are kept, and catch what breaks them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from support.packages import PACKAGES, ROOT

CONTRACTS = {
    contract["id"]: contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}
# What would break a contract: the contract, the module that is changed, what is added to it.
VIOLATIONS = [
    ("packages", "npnet_kernels/checks.py", "import npnet_runtime.errors"),
    ("packages", "npnet_export/request.py", "def lazily():\n    import npnet_training.models"),
    ("runtime", "npnet_runtime/networks/swin.py", "from npnet_runtime.weights import checkpoint"),
    (
        "runtime",
        "npnet_runtime/hot_path/base.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import npnet_runtime.golden",
    ),
    ("runtime", "npnet_runtime/newroom.py", "A_ROOM_THAT_NOBODY_PLACED = True"),
    ("kernels", "npnet_kernels/affine/reference.py", "from npnet_kernels.linalg import signs"),
    ("world", "npnet_training/shapes/verify.py", "from npnet_training.scorers import Scorer"),
    ("circles", "npnet_kernels/linalg/schedule.py", "from npnet_kernels.linalg import jacobi"),
    ("protocol", "npnet_runtime/integrations/diffusers/draw.py", "import npnet_runtime.golden"),
]


LINT = "import sys, importlinter.cli as cli; sys.exit(cli.lint_imports(sys.argv[1], (), sys.argv[2]))"


def lint(folders: list[Path], cache: Path) -> subprocess.CompletedProcess[str]:
    """Check the packages in `folders`, from elsewhere than the checkout, whose own would be found first."""
    command = [sys.executable, "-c", LINT, str(ROOT / "pyproject.toml"), str(cache)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cache)


def test_contracts_are_kept(tmp_path: Path) -> None:
    done = lint(list(PACKAGES.values()), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken" in done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    for name, parent in PACKAGES.items():
        shutil.copytree(
            parent / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
        )
    return folder


@pytest.mark.parametrize(("contract", "module", "added"), VIOLATIONS)
def test_what_breaks_a_contract_is_caught(
    contract: str, module: str, added: str, copy: Path, tmp_path: Path
) -> None:
    file = copy / module
    before = file.read_text() if file.exists() else None
    try:
        file.write_text(f"{before or ''}\n{added}\n")
        done = lint([copy], tmp_path)
    finally:
        file.unlink() if before is None else file.write_text(before)
    assert done.returncode == 1, done.stderr
    assert any(CONTRACTS[contract] in line and "BROKEN" in line for line in done.stdout.splitlines())

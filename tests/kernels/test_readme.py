"""The package's page: its examples run, and its table of modules is true."""

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "kernels"
TEXT = (PACKAGE / "README.md").read_text()


def test_examples_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=PACKAGE, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_named_files_exist() -> None:
    named = re.findall(r"`((?:linalg|reconstruction|affine)/[\w*./]*|operators\.py)`", TEXT)
    assert named
    for name in named:
        assert list((PACKAGE / "npnet_kernels").glob(name.rstrip("/"))), name

"""What the wheel contains, and what it needs."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser

import pytest

from support.packages import PACKAGES, ROOT

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
EXISTING = [name for name, folder in PACKAGES.items() if (folder / name).is_dir()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in EXISTING:
        relative = PACKAGES[name].relative_to(ROOT)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGES[name] / name, source / relative / name, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(source / "dist")]
    subprocess.run([*command, str(source)], check=True, capture_output=True, text=True)
    return zipfile.ZipFile(next((source / "dist").glob("*.whl")))


def test_top_level_modules(wheel: zipfile.ZipFile) -> None:
    """`kernels`, `export` and `training` belong to others."""
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == set(EXISTING)


def test_holds_every_module(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        str(file.relative_to(PACKAGES[name]))
        for name in EXISTING
        for file in (PACKAGES[name] / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert packed == expected
    assert {f"{name}/py.typed" for name in EXISTING} <= packed


def test_metadata(wheel: zipfile.ZipFile) -> None:
    folder = next(name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    needed = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert sorted(r.partition(">")[0] for r in needed) == ["numpy", "safetensors", "torch"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()
    entry_points = wheel.read(f"{folder}/entry_points.txt").decode()
    for name, target in SCRIPTS.items():
        assert f"{name} = {target}" in entry_points


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run_their_command(name: str) -> None:
    result = _script(name, "", "--help")
    assert result.returncode == 0, result.stderr
    assert f"usage: {name}" in result.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_interrupted_while_they_import(name: str) -> None:
    """Ctrl-C when torch, which every command needs, begins to be imported."""
    interrupting = (
        "import os, signal\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
    )
    result = _script(name, interrupting, "--version")
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "stopped\n")


def _script(name: str, before: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run what pip writes for an entry point."""
    module, _, function = SCRIPTS[name].partition(":")
    code = f"import sys\n{before}from {module} import {function} as main\nsys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PACKAGES.values()))}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("world", ["shapes", "scenes"])
def test_bundled_models_are_as_listed(wheel: zipfile.ZipFile, world: str) -> None:
    """Every file of the embedded model is in the wheel, and listed with licence and sha256; no other is."""
    folder = f"npnet_training/{world}/assets/"
    packed = {name.removeprefix(folder) for name in wheel.namelist() if name.startswith(folder)}
    if not (PACKAGES["npnet_training"] / folder).is_dir():
        assert not packed
        return
    listing = json.loads(wheel.read(f"{folder}assets.json"))
    assert listing["licence"] == "Apache-2.0"
    assert packed - {"assets.json"} == set(listing["files"])
    assert sum(len(wheel.read(folder + name)) for name in packed) <= 16e6
    for name, entry in listing["files"].items():
        assert hashlib.sha256(wheel.read(folder + name)).hexdigest() == entry["sha256"], name


@pytest.mark.parametrize("name", EXISTING)
def test_imports_nothing_that_belongs_to_others(name: str) -> None:
    """Our folders `kernels`, `export` and `training` are no packages; timm and torchvision tie torch down."""
    for file in (PACKAGES[name] / name).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            used = {module.partition(".")[0] for module in modules}
            assert not used & {"kernels", "export", "training", "timm", "torchvision"}, file


OPTIONAL = (
    "triton",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "huggingface_hub",
    "rich",
    "matplotlib",
    "tensorrt",
    "tensorrt_rtx",
    "accelerate",
    "diffusers",
    "transformers",
    "PIL",
)
LIGHT = """
import sys, time
for name in {optional!r}:
    sys.modules[name] = None  # an import of it raises ImportError
import torch, numpy, safetensors.torch
start = time.perf_counter()
import npnet_runtime
seconds = time.perf_counter() - start
golden = npnet_runtime.GoldenNoise({bundle!r}, device="cpu")
config = golden.bundle.manifest.config
golden(torch.randn(1, *config.latent_shape), torch.randn(1, *config.text_shape))
print(seconds)
"""


def test_core_needs_nothing_optional(small_bundles: dict) -> None:
    script = LIGHT.format(optional=OPTIONAL, bundle=str(small_bundles["torch"].path))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) <= 0.3


def test_versions_agree() -> None:
    import npnet_runtime

    assert f'version = "{npnet_runtime.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {npnet_runtime.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_extras_that_messages_name() -> None:
    """An error that says `pip install 'npnet-runtime[name]'` names an extra that there is."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    folders = ("npnet_runtime", "kernels", "export", "training", "benchmarks", "docs")
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    files = [path for path in paths if path.suffix in (".py", ".md")]
    named = {
        extra
        for path in (*files, *ROOT.glob("*.md"))
        for names in re.findall(r"npnet-runtime\[([\w,-]+)\]", path.read_text())
        for extra in names.split(",")
    }
    assert len(named) > 8
    assert named <= set(extras)

"""Bundles that were changed, cut, or made for something else are refused before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save

from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.bundles.bundle import check_target, write_bundle
from npnet_runtime.bundles.manifest import FILENAME, Manifest
from npnet_runtime.errors import BackendError, BundleError


@pytest.fixture
def copied(small_bundle: EngineBundle, tmp_path: Path) -> Path:
    """A copy of a bundle, to be damaged."""
    return Path(shutil.copytree(small_bundle.path, tmp_path / "bundle"))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((path / FILENAME).read_text())
    change(values)
    (path / FILENAME).write_text(json.dumps(values))


def engine_files(path: Path) -> list[Path]:
    return [file for file in sorted(path.iterdir()) if file.name != FILENAME]


def test_manifest_survives(small_bundle: EngineBundle) -> None:
    text = (small_bundle.path / FILENAME).read_text()
    assert small_bundle.manifest.to_json() == text
    assert Manifest.read(small_bundle.path) == small_bundle.manifest


def test_manifest_names_every_file(small_bundle: EngineBundle) -> None:
    assert sorted([*small_bundle.manifest.files, FILENAME]) == sorted(os.listdir(small_bundle.path))
    for name, entry in small_bundle.manifest.files.items():
        assert len(small_bundle.read(name)) == entry.bytes


@pytest.mark.parametrize("position", [0, 0.5, 1])
def test_one_byte_changed(copied: Path, position: float) -> None:
    for file in engine_files(copied):
        content = bytearray(file.read_bytes())
        content[int(position * (len(content) - 1))] ^= 1
        original = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(BundleError, match=rf"{file.name} is not the file.*sha256.*--weights"):
            GoldenNoise(copied, device="cpu")
        file.write_bytes(original)
    GoldenNoise(copied, device="cpu")


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "longer"])
def test_file_damaged(copied: Path, damage: str) -> None:
    file = engine_files(copied)[0]
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": content[:-1], "longer": content + b"0"}[damage])
    with pytest.raises(BundleError, match="cannot be read|is not the file"):
        GoldenNoise(copied, device="cpu")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda m: m.update(format_version=2), BundleError, "expected format version 4, given 2"),
        (lambda m: m.update(format="other"), BundleError, "expected the format"),
        (lambda m: m.pop("engine"), BundleError, r"missing fields \['engine'\]"),
        (lambda m: m.update(colour="red"), BundleError, r"unknown fields \['colour'\]"),
        (
            lambda m: m.update(files={"../../etc/passwd": {"bytes": 1, "sha256": ""}}),
            BundleError,
            "plain file names",
        ),
        (lambda m: m.update(files={"a": {"size": 1}}), BundleError, "malformed"),
        (lambda m: m.update(files=[1]), BundleError, "malformed"),
        (lambda m: m.update(config={}), BundleError, "malformed"),
        (lambda m: m.update(max_batch=0), BundleError, "malformed"),
        (lambda m: m.update(precision="int3"), BundleError, "malformed"),
        (lambda m: m.update(files={}), BundleError, "at least one"),
        (lambda m: m.update(files={"other": {"bytes": 1, "sha256": ""}}), BundleError, "lists no file"),
        (lambda m: m.update(files={"a": {"bytes": "x", "sha256": 5}}), BundleError, "bytes: expected int"),
        (lambda m: m.update(format_version=True), BundleError, "expected format version 4, given True"),
        (lambda m: m.update(requires=[]), BundleError, "requires: expected dict"),
        (lambda m: m.update(requires={"torch": 5}), BundleError, "expected conditions such as"),
        (lambda m: m.update(signs=[]), BundleError, "signs: expected str"),
        (lambda m: m.update(model=5), BundleError, "model: expected str"),
        (lambda m: m.update(weights=[]), BundleError, "weights: expected dict"),
        (lambda m: m.update(built_with=[]), BundleError, "built_with: expected dict"),
        (lambda m: m.update(float32_parts=[1]), BundleError, "float32_parts: expected tuple"),
        (lambda m: m.update(text_weight="a"), BundleError, "text_weight: expected float"),
        (lambda m: m.update(residual_weight=None), BundleError, "residual_weight: expected a finite number"),
        (lambda m: m.update(text_weight=float("nan")), BundleError, "finite number"),
        (lambda m: m.update(max_batch=True), BundleError, "max_batch: expected int"),
        (lambda m: m["parity"][0].update(value="d"), BundleError, "parity: value: expected float"),
        (lambda m: m.update(signs="canonical-v9"), BundleError, "sign rule of canonical-v1, as-is"),
        (lambda m: m.update(engine="tpu"), BackendError, "the bundle was built for tpu"),
        (lambda m: m.update(requires={"torch": ">=99.0"}), BackendError, "needs torch >=99.0"),
        (lambda m: m.update(requires={"torch": "==2.1.0"}), BackendError, "needs torch ==2.1.0"),
        (
            lambda m: m.update(requires={"nothing-of-that-name": ">=1"}),
            BackendError,
            "pip install 'nothing-of",
        ),
        (
            lambda m: m.update(compute_capabilities=["9.0"]),
            BackendError,
            "bound to a GPU of compute capability 9.0",
        ),
    ],
)
def test_manifest_changed(copied: Path, change: Callable, error: type[Exception], said: str) -> None:
    edit(copied, change)
    with pytest.raises(error, match=said):
        GoldenNoise(copied, device="cpu")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_manifest_unreadable(copied: Path, content: bytes) -> None:
    (copied / FILENAME).write_bytes(content)
    with pytest.raises(BundleError, match=FILENAME):
        GoldenNoise(copied)


def test_config_of_another_network(copied: Path) -> None:
    """The manifest and the engine contradict each other."""
    edit(copied, lambda m: m["config"].update(text_dim=16))
    if json.loads((copied / FILENAME).read_text())["engine"] == "torch":
        with pytest.raises(BundleError, match="does not fit the manifest"):
            GoldenNoise(copied, device="cpu")


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="found nothing.*npnet-export"):
        GoldenNoise(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="found a file"):
        GoldenNoise(tmp_path / "file")
    with pytest.raises(BundleError, match="no engine bundle"):
        GoldenNoise(tmp_path)
    with pytest.raises(BundleError, match="expected the path of an engine bundle, given None"):
        GoldenNoise(None)  # type: ignore[arg-type]


def reseal(path: Path, name: str, content: bytes) -> None:
    """Put other content into a bundle, with the sha256 to match."""
    (path / name).write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(path, lambda m: m["files"].update({name: entry}))


def test_weights_of_another_precision(small_bundles: dict[str, EngineBundle], tmp_path: Path) -> None:
    path = Path(shutil.copytree(small_bundles["torch"].path, tmp_path / "b"))
    state = load((path / "weights.safetensors").read_bytes())
    state["spectral_head.qkv.weight"] = state["spectral_head.qkv.weight"].double()
    reseal(path, "weights.safetensors", save(state))
    with pytest.raises(BundleError, match=r"qkv.weight: expected torch.float32 .*, given torch.float64"):
        GoldenNoise(path, device="cpu")


def test_graphs_swapped(small_bundles: dict[str, EngineBundle], tmp_path: Path) -> None:
    path = Path(shutil.copytree(small_bundles["onnxruntime"].path, tmp_path / "b"))
    reseal(path, "spectral_head.onnx", (path / "prompt_half.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"expected float inputs \('u', 's', 'vh'\).*given"):
        GoldenNoise(path, device="cpu")


def test_graph_that_is_none(small_bundles: dict[str, EngineBundle], tmp_path: Path) -> None:
    path = Path(shutil.copytree(small_bundles["onnxruntime"].path, tmp_path / "b"))
    reseal(path, "spectral_head.onnx", b"not a graph")
    with pytest.raises(BundleError, match="ONNX Runtime cannot load it"):
        GoldenNoise(path, device="cpu")


class TestWrite:
    def test_keeps_a_link_to_the_folder(self, small_bundle: EngineBundle, tmp_path: Path) -> None:
        (tmp_path / "v1").mkdir()
        (tmp_path / "current").symlink_to("v1")
        with write_bundle(tmp_path / "current", force=True) as (folder, seal):
            (folder / "engine").write_bytes(b"1")
            seal(small_bundle.manifest)
        assert (tmp_path / "current").is_symlink()
        assert (tmp_path / "v1" / "engine").read_bytes() == b"1"
        assert sorted(os.listdir(tmp_path)) == ["current", "v1"]

    def test_lists_what_is_there(self, small_bundle: EngineBundle, tmp_path: Path) -> None:
        with write_bundle(tmp_path / "b") as (folder, seal):
            (folder / "engine").write_bytes(b"12345")
            sealed = seal(replace(small_bundle.manifest, files={}))
            assert sealed.read("engine") == b"12345"
        assert EngineBundle.open(tmp_path / "b").manifest.files["engine"].bytes == 5

    def test_replaces_bundles_only(self, copied: Path, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="--force"):
            check_target(copied, force=False)
        check_target(copied, force=True)
        other = tmp_path / "precious"
        other.mkdir()
        (other / "thesis.tex").touch()
        with pytest.raises(BundleError, match="no engine bundle"):
            check_target(other, force=True)
        with pytest.raises(BundleError, match="no engine bundle"):
            check_target(other / "thesis.tex", force=True)
        with pytest.raises(BundleError, match="is a file"):
            check_target(other / "thesis.tex" / "deep" / "er", force=False)

    def test_needs_space(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="of free space"):
            check_target(tmp_path / "b", force=False, need_bytes=1 << 60)

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="a file system that nobody may write")
    def test_cannot_be_written(self) -> None:
        """Not said to be full: its free space is 0 as well."""
        with pytest.raises(BundleError, match="/proc cannot be written .*choose another --output"):
            check_target(Path("/proc/sdxl"), force=False, need_bytes=1)

    def test_full_disk(self, tmp_path: Path) -> None:
        def fill() -> None:
            with write_bundle(tmp_path / "b"):
                raise OSError(28, "No space left on device")

        with pytest.raises(BundleError, match=r"No space left.*choose another --output"):
            fill()
        assert not list(tmp_path.iterdir())

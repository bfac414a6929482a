"""AOTInductor packages: built, bound, refused. What they compute is tested beside the other engines."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from npnet_export import ExportError, ExportSettings, export
from npnet_export.aoti import compile_package
from npnet_export.parity import TOLERANCES
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.backends.aoti_backend import AotiBackend
from npnet_runtime.backends.machine import this_platform
from npnet_runtime.bundles.bundle import write_bundle
from npnet_runtime.errors import BundleError, InputError
from npnet_runtime.networks.graphs import Graph, graphs
from npnet_runtime.weights.models import MODELS
from support.networks import noise_and_prompts

Settings = Callable[..., ExportSettings]


@pytest.fixture
def bundle(small_bundles: dict[str, EngineBundle]) -> EngineBundle:
    return small_bundles["aoti"]


def test_says_what_it_is_bound_to(bundle: EngineBundle) -> None:
    manifest = bundle.manifest
    assert manifest.requires == {"torch": "==" + torch.__version__.partition("+")[0]}
    assert manifest.device == "cpu"
    assert manifest.platform == this_platform()
    assert manifest.compute_capabilities == ()
    assert sorted(manifest.files) == ["prompt_half.pt2", "spectral_head.pt2"]


def test_half_precision_keeps_its_float32_parts(tmp_path: Path, export_small: Settings) -> None:
    made = export(export_small(tmp_path / "bundle", engine="aoti", precision="fp16", max_batch=1))
    assert 0 < made.manifest.parity[0].value <= TOLERANCES["fp16"][1]
    noise, prompts = noise_and_prompts(made.manifest.config, 2)
    assert GoldenNoise(made, device="cpu")(noise, prompts).isfinite().all()


def judge(made: EngineBundle, precision: str) -> None:
    """The real networks: parity, what the manifest says, and the packages inside."""
    judged = made.manifest.parity[0]
    assert judged.tolerance == TOLERANCES[precision][1]
    assert 0 < judged.value <= judged.tolerance
    assert (made.manifest.device, made.manifest.platform) == ("cpu", this_platform())
    weights = sum(made.manifest.files[name].bytes for name in ("prompt_half.pt2", "spectral_head.pt2"))
    assert 110e6 / (1 if precision == "fp32" else 2) < weights < 180e6
    for name in made.manifest.files:
        with zipfile.ZipFile(io.BytesIO(made.read(name))) as package:
            kinds = {Path(entry).suffix for entry in package.namelist()}
            assert package.testzip() is None
            assert {".so", ".json"} <= kinds


@pytest.mark.slow
def test_full_size_sdxl(sdxl_bundles: dict[str, EngineBundle]) -> None:
    """With the fixture's weights; against the fixture: `tests/runtime/test_golden.py`, `test_fixture.py`."""
    judge(sdxl_bundles["aoti-fp32"], "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sdxl", "hunyuan-dit"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_full_size_for_any_batch(
    model: str, precision: str, full_size_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    weights = WeightsRequest(MODELS[model], str(full_size_checkpoints[model]))
    made = export(ExportSettings(weights, tmp_path / model, model, "aoti", precision, device="cpu"))
    judge(made, precision)


def test_loading_imports_no_compiler(bundle: EngineBundle) -> None:
    script = (
        "import sys, torch, npnet_runtime; npnet_runtime.GoldenNoise(sys.argv[1], device='cpu');"
        "sys.exit('torch._inductor' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(bundle.path)], check=True)


def test_concurrent_calls(bundle: EngineBundle) -> None:
    golden = GoldenNoise(bundle, device="cpu")
    inputs = [noise_and_prompts(bundle.manifest.config, 1 + seed % 3, seed) for seed in range(8)]
    expected = [golden(*pair) for pair in inputs]
    given: dict[int, torch.Tensor] = {}
    threads = [threading.Thread(target=lambda i=i: given.update({i: golden(*inputs[i])})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(given[i], expected[i]) for i in range(8))


@pytest.mark.parametrize("graph", ["prompt_half", "spectral_head"])
def test_the_back_end_refuses_other_shapes(bundle: EngineBundle, graph: str) -> None:
    """Cut into batches it is never given them; but the packages themselves look at nothing."""
    backend = AotiBackend(bundle, torch.device("cpu"))
    config, largest = bundle.manifest.config, bundle.manifest.max_batch

    def inputs(*rows: int, more: int = 0) -> list[torch.Tensor]:
        shapes = graphs(config)[graph].inputs.values()
        given = [torch.ones(rows[i % len(rows)], *shape) for i, shape in enumerate(shapes)]
        given[-1] = torch.ones(*given[-1].shape[:-1], given[-1].shape[-1] + more)
        return given

    assert all(len(output) == largest for output in backend.run(graph, *inputs(largest)))
    for wrong in (inputs(largest + 1), inputs(0), inputs(2, 1), inputs(1, more=1)):
        with pytest.raises(InputError, match=rf"{graph}: expected .* one batch of 1 to {largest}, given"):
            backend.run(graph, *wrong)


@pytest.mark.parametrize("content", [b"", b"no package", b"PK\x03\x04" + bytes(200)])
def test_listed_but_no_package(bundle: EngineBundle, tmp_path: Path, content: bytes) -> None:
    """Files that the manifest vouches for, but torch cannot load."""
    with write_bundle(tmp_path / "b") as (folder, seal):
        for name in bundle.manifest.files:
            (folder / name).write_bytes(content)
        seal(replace(bundle.manifest, files={}))
    with pytest.raises(BundleError, match=r"AOTInductor cannot load it.*npnet-export .*--engine aoti"):
        GoldenNoise(tmp_path / "b", device="cpu")


def test_no_compiler(tmp_path: Path, export_small: Settings) -> None:
    from torch._inductor import config

    wanted = r"spectral_head.pt2.*\n.*C\+\+ compiler: apt install g\+\+"
    # Not by monkeypatch: it would leave the configuration without the entry.
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(ExportError, match=wanted):
        export(export_small(tmp_path / "bundle", engine="aoti"))
    assert not list(tmp_path.iterdir())


def test_interrupted_while_compiling(tmp_path: Path, small_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "npnet_export", "--weights", str(small_checkpoint), "--engine", "aoti"]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--output", str(tmp_path / "out" / "bundle")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "compiling" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(timeout=120) == 130
    assert "interrupted; nothing was written" in rest
    assert os.listdir(tmp_path / "out") == []
    assert not [name for name in os.listdir(tmp_path) if name.startswith("npnet-aoti")]


@pytest.mark.parametrize(("device", "named"), [("cpu", False), ("cuda", True)])
def test_a_failed_build_names_what_it_needs(
    device: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the compiler is seldom what is missing: the toolkit's headers and the driver's library are."""

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("fatal error: cuda.h: No such file or directory")

    monkeypatch.setattr(torch, "zeros", lambda *shape, device: torch.ones(*shape))
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fails)
    with pytest.raises(ExportError, match="apt install g\\+\\+") as caught:
        compile_package(
            torch.nn.Identity(), Graph({"x": (3,)}, {"y": (3,)}), 2, torch.device(device), tmp_path / "x.pt2"
        )
    for said in ("CUDA_HOME", "nvidia-cuda-runtime", "-lcuda"):
        assert (said in str(caught.value)) is named

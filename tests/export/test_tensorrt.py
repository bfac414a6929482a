"""Engines of TensorRT for RTX, built for real without a GPU; what TensorRT shares with it; every refusal."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch

from npnet_export import ExportError, ExportSettings, export
from npnet_export.build import check
from npnet_export.cli import main
from npnet_export.request import BuilderOptions
from npnet_export.tensorrt import parse, targets
from npnet_export.tensorrt_cache import timing_cache_path, write_timing_cache
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle
from npnet_runtime.backends.machine import Machine
from npnet_runtime.backends.selection import select
from npnet_runtime.backends.tensorrt_backend import TensorRTBackend, check_profile
from npnet_runtime.backends.tensorrt_module import import_tensorrt, new_log
from npnet_runtime.bundles.bundle import write_bundle
from npnet_runtime.errors import BackendError, BundleError
from npnet_runtime.networks.graphs import graphs
from npnet_runtime.weights.models import MODELS
from support.networks import SMALL

SPECTRAL_HEAD, PROMPT_HALF = "spectral_head.engine", "prompt_half.engine"

trt = pytest.importorskip("tensorrt_rtx")

Settings = Callable[..., ExportSettings]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
VERSION = trt.__version__
RTX = {"engine": "tensorrt-rtx", "verify": False}


@pytest.fixture(scope="module")
def bundle(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    """A small engine for Ada GPUs."""
    weights = WeightsRequest(None, str(small_checkpoint))
    options = BuilderOptions(opt_batch=2, optimization_level=2, workspace_mb=64, compute_capability=("8.9",))
    folder = tmp_path_factory.mktemp("engines") / "rtx"
    return export(ExportSettings(weights, folder, "small", max_batch=3, device="cpu", options=options, **RTX))


class TestBuilt:
    def test_says_what_it_is_bound_to(self, bundle: EngineBundle) -> None:
        manifest = bundle.manifest
        assert manifest.requires == {"tensorrt-rtx": f"=={VERSION}"}
        assert (manifest.device, manifest.compute_capabilities) == ("cuda", ("8.9",))
        assert manifest.platform == {}
        assert sorted(manifest.files) == ["build.log", PROMPT_HALF, SPECTRAL_HEAD]

    def test_says_that_parity_was_not_run(
        self, bundle: EngineBundle, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bundle.manifest.parity == ()
        assert bundle.manifest.unverified == "--no-verify (it runs on cuda, given the device cpu)"
        assert main(["inspect", str(bundle.path)]) == 0
        assert "NOT checked: --no-verify" in capsys.readouterr().out

    def test_rebuild_command_has_its_options(self, bundle: EngineBundle) -> None:
        wanted = "--opt-batch 2 --optimization-level 2 --workspace-mb 64 --compute-capability 8.9"
        assert wanted in bundle.rebuild_command()

    def test_rebuild_command_rebuilds(self, bundle: EngineBundle, tmp_path: Path) -> None:
        copied = EngineBundle.open(shutil.copytree(bundle.path, tmp_path / "bundle"))
        arguments = [*shlex.split(copied.rebuild_command())[1:], "--device", "cpu", "--quiet"]
        assert main(arguments) == 1  # never unchecked without being told
        assert main([*arguments, "--no-verify"]) == 0
        again = EngineBundle.open(copied.path).manifest
        assert replace(again, files={}) == replace(bundle.manifest, files={})

    def test_keeps_its_build_log(self, bundle: EngineBundle) -> None:
        log = bundle.read("build.log").decode()
        for name in (PROMPT_HALF, SPECTRAL_HEAD):
            assert f"[NETWORK] {name}:" in log
        assert log.count("[VERBOSE] Layers:") == 2
        assert str(Path.cwd()) not in log

    def test_names_its_stages(self, tmp_path: Path, export_small: Settings) -> None:
        stages: list[str] = []
        export(export_small(tmp_path / "bundle", **RTX), stages.append)
        assert f"{PROMPT_HALF}: building engine" in stages
        assert not any("%" in stage for stage in stages)


@pytest.mark.parametrize("model", ["sdxl", "hunyuan-dit"])
def test_full_size(model: str, full_size_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The real graphs and the fixture's weights in fp16: what stays float32, the layers, no plugin."""
    weights = WeightsRequest(MODELS[model], str(full_size_checkpoints[model]))
    made = export(ExportSettings(weights, tmp_path / model, model, precision="fp16", device="cpu", **RTX))
    assert made.manifest.compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    # fp16 weights, and little else
    assert made.manifest.files[PROMPT_HALF].bytes < 80e6
    log = made.read("build.log").decode()
    assert "29 NORMALIZATION" in log  # the layer norms
    assert "12 SOFTMAX" in log
    spectral, prompt = (
        [line for line in block.splitlines() if line.startswith("Name: ")]
        for block in re.split(r"\[VERBOSE\] Layers:\n", log)[1:]
    )
    assert len(spectral) >= 5
    assert len(prompt) >= 50
    assert not re.search(r"LayerType: \w*plugin", log, re.IGNORECASE)
    # the group norm, by its means
    norm = [line for line in prompt if "node_mean" in line and re.match(r"Name: \w*Mean_", line)]
    assert norm
    assert all("Datatype: Float" in line and "Datatype: Half" not in line for line in norm)
    for config in ("noise", "prompt_embeds"):
        assert re.search(rf"Name: {config}, Dimensions: \[-1,[^]]*\],[^}}]*Datatype: Float", log)


class TestRefused:
    def test_unless_told_that_parity_cannot_run(self, tmp_path: Path, export_small: Settings) -> None:
        with pytest.raises(ExportError, match=r"it runs on cuda.*--no-verify.*verify DIR --record"):
            check(export_small(tmp_path / "b", engine="tensorrt-rtx"))

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"compute_capability": ("9.0",)}, "builds for 7.5, .*; given 9.0"),
            ({"optimization_level": 6}, "expected 0 to 5, given 6"),
            ({"opt_batch": 4}, "expected 1 to --max-batch 3, given 4"),
            ({"version_compatible": True}, "--version-compatible: --engine tensorrt-rtx takes"),
        ],
    )
    def test_options(self, tmp_path: Path, export_small: Settings, options: dict, said: str) -> None:
        with pytest.raises(ExportError, match=said):
            check(export_small(tmp_path / "b", options=BuilderOptions(**options), **RTX))

    def test_options_of_another_engine(self, tmp_path: Path, export_small: Settings) -> None:
        with pytest.raises(ExportError, match="--opt-batch: --engine torch takes none"):
            check(export_small(tmp_path / "b", options=BuilderOptions(opt_batch=1)))

    @pytest.mark.parametrize(
        ("engine", "install"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt-rtx-cu13")]
    )
    def test_missing_module(
        self, engine: str, install: str, tmp_path: Path, export_small: Settings, monkeypatch
    ) -> None:
        monkeypatch.setitem(sys.modules, engine.replace("-", "_"), None)
        with pytest.raises(BackendError, match=f"cannot be imported.*pip install {install}$"):
            check(export_small(tmp_path / "b", engine=engine, verify=False))

    def test_tensorrt_without_a_gpu(
        self, tmp_path: Path, export_small: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        with pytest.raises(ExportError, match=r"given cpu; .*--engine tensorrt-rtx"):
            check(export_small(tmp_path / "b", engine="tensorrt", verify=False))

    def test_builder_that_gives_up(
        self, tmp_path: Path, export_small: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As when memory runs out: the library logs it and gives no engine."""

        class Builder(trt.Builder):
            def __init__(self, log: trt.ILogger) -> None:
                super().__init__(log)
                self.own_log = log

            def build_serialized_network(self, network: object, config: object) -> None:
                self.own_log.log(trt.ILogger.Severity.ERROR, "Requested 9 GiB")

        monkeypatch.setattr(trt, "Builder", Builder)
        with pytest.raises(
            ExportError, match=r"could not build .*:\n  Requested 9 GiB\n.*smaller --max-batch"
        ):
            export(export_small(tmp_path / "bundle", **RTX))
        assert not list(tmp_path.iterdir())

    def test_graph_that_the_parser_refuses(self) -> None:
        log = new_log(trt)
        node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
        value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]))
        with pytest.raises(ExportError, match=r"cannot parse the graph of x.engine:\n.*NoSuchOperator"):
            parse(trt, log, trt.Builder(log), "x.engine", model.SerializeToString())

    def test_norm_in_half_precision(self) -> None:
        half = onnx.TensorProto.FLOAT16
        value = [onnx.helper.make_tensor_value_info(n, half, [2, 8]) for n in "xy"]
        graph = onnx.helper.make_graph([onnx.helper.make_node("Softmax", ["x"], ["y"])], "g", *zip(value))
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
        log = new_log(trt)
        with pytest.raises(ExportError, match="float32 norms, given .*SOFTMAX of DataType.HALF"):
            parse(trt, log, trt.Builder(log), "x.engine", model.SerializeToString())

    def test_interrupted(self, tmp_path: Path, export_small: Settings) -> None:
        def interrupt(stage: str) -> None:
            if stage == f"{PROMPT_HALF}: building engine":
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            export(export_small(tmp_path / "bundle", **RTX), interrupt)
        assert not list(tmp_path.iterdir())


class TestLoading:
    @pytest.fixture(autouse=True)
    def _no_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if torch.cuda.is_available():
            pytest.skip("shows what happens without a driver")
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())

    def test_null_engine_carries_the_log(self, bundle: EngineBundle) -> None:
        with pytest.raises(
            BundleError, match=r"cannot load it:\n(.*\n)*.*CUDA(.*\n)*.*npnet-export --weights"
        ):
            TensorRTBackend(bundle, CUDA)

    @pytest.mark.parametrize("content", [b"", b"no engine", b"ftrt" + bytes(500)])
    def test_listed_but_no_engine(self, bundle: EngineBundle, tmp_path: Path, content: bytes) -> None:
        with write_bundle(tmp_path / "b") as (folder, seal):
            for name in bundle.manifest.files:
                (folder / name).write_bytes(content)
            sealed = seal(replace(bundle.manifest, files={}))
            with pytest.raises(BundleError, match="cannot load it"):
                TensorRTBackend(sealed, CUDA)

    @pytest.mark.parametrize("cut", [slice(0, 0), slice(0, 1000), slice(1, None)])
    def test_damaged_engine_never_reaches_the_library(
        self, bundle: EngineBundle, tmp_path: Path, cut: slice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in bundle.manifest.files:
            content = (bundle.path / name).read_bytes()
            (tmp_path / name).write_bytes(content[cut] if name == SPECTRAL_HEAD else content)
        (tmp_path / "manifest.json").write_bytes((bundle.path / "manifest.json").read_bytes())
        fake = SimpleNamespace(
            deserialize_cuda_engine=lambda content: pytest.fail("was given to the library")
        )
        monkeypatch.setattr(trt, "Runtime", lambda log: fake)
        with pytest.raises(BundleError, match="is not the file the bundle was written with"):
            TensorRTBackend(EngineBundle.open(tmp_path), CUDA)


class TestProfile:
    def engine(self, largest: int, **changes: tuple[int, ...]) -> SimpleNamespace:
        shapes = {"noise": SMALL.latent_shape, "prompt_embeds": SMALL.text_shape} | changes
        names = [name for name in shapes if shapes[name] is not None]
        return SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=names.__getitem__,
            get_tensor_profile_shape=lambda name, index: tuple((b, *shapes[name]) for b in (1, 1, largest)),
        )

    def check(self, bundle: EngineBundle, engine: SimpleNamespace) -> None:
        check_profile(bundle, PROMPT_HALF, engine, graphs(SMALL)["prompt_half"])

    def test_covers_the_batches(self, bundle: EngineBundle) -> None:
        self.check(bundle, self.engine(3))
        self.check(bundle, self.engine(8))

    @pytest.mark.parametrize(
        ("largest", "changes", "said"),
        [
            (2, {}, r"profile for noise of \(1, 4, 16, 16\) to \(3, 4, 16, 16\), given .* to \(2,"),
            (3, {"prompt_embeds": (5, 11)}, r"profile for prompt_embeds .*given \(1, 5, 11\) to"),
            (3, {"prompt_embeds": None}, "given no such input; write it again with: npnet-export"),
        ],
    )
    def test_does_not(self, bundle: EngineBundle, largest: int, changes: dict, said: str) -> None:
        with pytest.raises(BundleError, match=said):
            self.check(bundle, self.engine(largest, **changes))


class TestSelection:
    ADA = Machine({"tensorrt-rtx": VERSION}, ("8.9",))

    def reason(self, bundle: EngineBundle, machine: Machine, device: torch.device = CUDA) -> str:
        judged = {c.backend: c for c in select(bundle.manifest, machine, device)}["tensorrt-rtx"]
        return "" if judged.accepted else judged.reason

    def test_accepts(self, bundle: EngineBundle) -> None:
        assert self.reason(bundle, self.ADA) == ""

    def test_rejects(self, bundle: EngineBundle) -> None:
        assert "bound to cuda, given device='cpu'" in self.reason(bundle, self.ADA, CPU)
        hopper = replace(self.ADA, compute_capability=("9.0",))
        assert "bound to compute capability 8.9, cuda:0 has 9.0" in self.reason(bundle, hopper)
        newer = replace(self.ADA, versions={"tensorrt-rtx": "1.8.0.1"})
        install = f"pip install 'tensorrt-rtx-cu13=={VERSION}'"
        assert f"1.8.0.1 is installed; rebuild it, or {install}" in self.reason(bundle, newer)
        assert f"is not installed: {install}" in self.reason(bundle, replace(self.ADA, versions={}))


def test_targets_of_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npnet_export.tensorrt.cuda_capabilities", lambda: ("8.6", "9.0"))
    second = torch.device("cuda", 1)
    assert targets("tensorrt", BuilderOptions(), second) == ("9.0",)
    same = BuilderOptions(hardware_compatibility="same-compute-capability")
    assert targets("tensorrt", same, second) == ("9.0",)
    assert targets("tensorrt", BuilderOptions(hardware_compatibility="ampere-plus"), second) == ("8.0+",)


def test_timing_cache_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = timing_cache_path("tensorrt", "11.4.0", ("9.0",))
    assert path.is_relative_to(tmp_path)
    write_timing_cache(SimpleNamespace(serialize=lambda: b"timings"), path)
    assert path.read_bytes() == b"timings"
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match="pip install tensorrt-rtx-cu13"):
        import_tensorrt("tensorrt-rtx")

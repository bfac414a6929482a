"""Export: what is written, what is refused, what is left behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from npnet_export import ExportError, ExportSettings, ParityError, export
from npnet_export.build import check
from npnet_export.parity import TOLERANCES, difference
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, GoldenNoise, NPNet
from npnet_runtime.errors import BackendError, BundleError, CheckpointError, DownloadError
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.weights import checkpoint
from npnet_runtime.weights.models import MODELS
from support.networks import SHAPES, noise_and_prompts

Settings = Callable[..., ExportSettings]


def test_records_where_it_came_from(small_bundle: EngineBundle, small_checkpoint: Path) -> None:
    manifest = small_bundle.manifest
    assert manifest.model == "small"
    assert manifest.weights["source"] == str(small_checkpoint)
    assert manifest.weights["sha256"] == checkpoint.read(small_checkpoint).sha256
    assert manifest.max_batch == 3
    assert manifest.signs == "canonical-v1"
    assert manifest.built_with["torch"] == torch.__version__
    golden, *informative = manifest.parity
    assert (golden.quantity, golden.tolerance) == ("golden", TOLERANCES["fp32"][1])
    assert 0 <= golden.value <= TOLERANCES["fp32"][1]
    assert informative
    assert all(row.tolerance is None for row in informative)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_every_shape(name: str, engine: str, tmp_path: Path, export_small: Settings) -> None:
    if engine == "onnxruntime" and name not in ("16 channels", "landscape"):
        pytest.skip("traced for two shapes only: each takes seconds")
    config = SHAPES[name]
    checkpoint.write(tmp_path / "weights", random_state(config, 2), config)
    settings = replace(
        export_small(tmp_path / "bundle", engine=engine),
        weights=WeightsRequest(None, str(tmp_path / "weights")),
    )
    bundle = export(settings)
    noise, prompts = noise_and_prompts(config, 2)
    assert GoldenNoise(bundle, device="cpu")(noise, prompts).shape == noise.shape


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_same_input_same_bytes(engine: str, tmp_path: Path, export_small: Settings) -> None:
    for name in ("a", "b"):
        export(export_small(tmp_path / name, engine=engine))
    assert sorted(os.listdir(tmp_path / "a")) == sorted(os.listdir(tmp_path / "b"))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("engine", "precision"),
    [("torch", "fp16"), ("torch", "bf16"), ("onnxruntime", "fp16")],
)
def test_precisions(
    engine: str, precision: str, tmp_path: Path, export_small: Settings, small_network: NPNet
) -> None:
    bundle = export(export_small(tmp_path / "bundle", engine=engine, precision=precision))
    assert "softmax" in bundle.manifest.float32_parts
    row = bundle.manifest.parity[0]
    assert row.statistic == "rms"
    assert 0 < row.value <= TOLERANCES[precision][1]


def test_graphs_carry_no_paths_and_their_precision(tmp_path: Path, export_small: Settings) -> None:
    bundle = export(export_small(tmp_path / "bundle", engine="onnxruntime", precision="fp16"))
    for name in bundle.manifest.files:
        content = bundle.read(name)
        for secret in (b"site-packages", str(Path.cwd()).encode(), b".py"):
            assert secret not in content
        model = onnx.load_from_string(content)
        assert model.opset_import[0].version >= 21
        assert {tensor.type.tensor_type.elem_type for tensor in model.graph.input} == {onnx.TensorProto.FLOAT}
        assert all(tensor.type.tensor_type.shape.dim[0].dim_param for tensor in model.graph.input)
        inferred = onnx.shape_inference.infer_shapes(model)
        types = {
            v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.input)
        }
        types |= {tensor.name: tensor.data_type for tensor in inferred.graph.initializer}
        for node in inferred.graph.node:
            # ONNX Runtime's CUDA provider cannot place it, and TensorRT 10.7 fails on it
            assert node.op_type != "GroupNormalization"
            if node.op_type in ("LayerNormalization", "Softmax"):
                assert types[node.input[0]] == onnx.TensorProto.FLOAT, node
            elif node.op_type == "MatMul" and "embed" not in node.name:
                products = types[node.input[0]], types[node.input[1]]
                assert products[0] == products[1]
        halves = sum(
            types[n.input[0]] == onnx.TensorProto.FLOAT16
            for n in inferred.graph.node
            if n.op_type == "MatMul"
        )
        assert halves >= 5


class TestRefused:
    def test_engine_that_disagrees(
        self, tmp_path: Path, export_small: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(TOLERANCES, "fp16", ("rms", 1e-9))
        with pytest.raises(ParityError, match=r"golden: rms .*, tolerance 1e-09"):
            export(export_small(tmp_path / "bundle", precision="fp16"))
        assert not list(tmp_path.iterdir())

    def test_engine_that_gives_nan(self, tmp_path: Path, export_small: Settings, small_state: dict) -> None:
        """Weights that overflow float16."""
        name = "spectral_head.f_mlp.2.weight"
        huge = {**small_state, name: small_state[name] * 1e6}
        settings = export_small(tmp_path / "bundle", precision="fp16")
        checkpoint.write(tmp_path / "huge", huge, SHAPES["small"])
        settings = replace(settings, weights=WeightsRequest(None, str(tmp_path / "huge")))
        with pytest.raises(ExportError, match="has collapsed: its norm is .* --allow-collapse"):
            export(settings)
        settings = replace(settings, allow_collapse=True)
        with pytest.raises(ParityError, match=r"was not kept.*not finite"):
            export(settings)
        assert os.listdir(tmp_path) == ["huge"]

    def test_existing_bundle(self, tmp_path: Path, export_small: Settings) -> None:
        first = export(export_small(tmp_path / "bundle"))
        with pytest.raises(BundleError, match="pass --force"):
            export(export_small(tmp_path / "bundle"))
        second = export(export_small(tmp_path / "bundle", max_batch=5, force=True))
        assert (first.manifest.max_batch, second.manifest.max_batch) == (3, 5)
        assert os.listdir(tmp_path) == ["bundle"]

    def test_failed_replacement_keeps_the_old(
        self, tmp_path: Path, export_small: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export(export_small(tmp_path / "bundle"))
        monkeypatch.setitem(TOLERANCES, "fp16", ("rms", 1e-9))
        with pytest.raises(ParityError):
            export(export_small(tmp_path / "bundle", precision="fp16", force=True))
        assert EngineBundle.open(tmp_path / "bundle").manifest.precision == "fp32"
        assert os.listdir(tmp_path) == ["bundle"]

    def test_unwritable(self, tmp_path: Path, export_small: Settings) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(BundleError, match="is a file"):
            export(export_small(tmp_path / "file" / "bundle"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_read_only_folder(self, tmp_path: Path, export_small: Settings) -> None:
        tmp_path.chmod(0o555)
        with pytest.raises(BundleError, match="cannot write"):
            export(export_small(tmp_path / "bundle"))

    def test_disk_fills_up(
        self, tmp_path: Path, export_small: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("npnet_export.engines.save_file", full)
        with pytest.raises(BundleError, match="No space left on device"):
            export(export_small(tmp_path / "bundle"))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("module", ["onnx", "onnxscript"])
    def test_missing_module(
        self, module: str, tmp_path: Path, export_small: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ExportError, match=rf"needs {module}: pip install 'npnet-runtime\[export\]'"):
            export(export_small(tmp_path / "bundle", engine="onnxruntime"))
        assert not list(tmp_path.iterdir())

    def test_memory_runs_out(
        self, tmp_path: Path, export_small: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: object, **kwargs: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

        monkeypatch.setattr("npnet_export.engines.save_file", full)
        with pytest.raises(BackendError, match=r"too little memory: .*9 GiB\n.*smaller --max-batch"):
            export(export_small(tmp_path / "bundle"))
        assert not list(tmp_path.iterdir())

    def test_bf16_on_the_cpu_of_onnxruntime(self, tmp_path: Path, export_small: Settings) -> None:
        with pytest.raises(ExportError, match="no bfloat16 products.*--precision fp16, or --engine torch"):
            check(export_small(tmp_path / "bundle", engine="onnxruntime", precision="bf16"))

    def test_missing_weights(self, tmp_path: Path, export_small: Settings) -> None:
        settings = export_small(tmp_path / "bundle")
        with pytest.raises(CheckpointError, match="no such file"):
            export(replace(settings, weights=WeightsRequest(None, "absent.safetensors")))
        offline = WeightsRequest(MODELS["sdxl"], "owner/nowhere", offline=True)
        with pytest.raises(DownloadError, match="not in the cache"):
            export(replace(settings, weights=offline))
        assert not list(tmp_path.iterdir())


def test_difference_is_nan_for_nan() -> None:
    for statistic in ("max_abs", "rms"):
        value = difference(statistic, torch.tensor([1.0, torch.nan]), torch.ones(2))
        assert not value <= 1e9

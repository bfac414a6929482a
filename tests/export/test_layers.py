"""`npnet-export verify --debug-layers` on engines that are sound, and on engines broken at a known layer."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load, save
from torch import Tensor

from npnet_export import ExportError, ExportSettings, export, onnx_graphs
from npnet_export.cli import main
from npnet_export.layers import LayerReport, compare_layers, debug_layers, graphs
from npnet_export.layers.modules import aoti_layers
from npnet_export.request import BuildRequest
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle
from npnet_runtime.bundles.bundle import write_bundle
from npnet_runtime.errors import BackendError, BundleError, NPNetError
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import Network, NetworkConfig, network_from_state
from npnet_runtime.weights import checkpoint
from support.networks import SMALL, SMALL_ATTENTION

CPU = torch.device("cpu")
CONFIGS: dict[str, NetworkConfig] = {"npnet": SMALL, "prompt-attention": SMALL_ATTENTION}
# One layer in the middle of each kind of network: module, graph.
MIDDLE = {
    "npnet": ("swin.stages.0.1.mlp.fc1", "prompt_half"),
    "prompt-attention": ("prompt_blocks.0.mlp.0", "network"),
}
State = dict[str, Tensor]


def key(kind: str) -> str:
    """Name in the state dict of the middle layer, without `.weight`."""
    return ("prompt_half." if kind == "npnet" else "") + MIDDLE[kind][0]


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """Tracing a network takes seconds: every network of the same weights gives the same graphs."""
    original, traced = onnx_graphs.write_graphs, {}

    def write(network: Network, folder: Path) -> None:
        weights = tuple((t.dtype, float(t.double().sum())) for t in network.state_dict().values())
        if weights not in traced:
            original(network, folder)
            traced[weights] = {file.name: file.read_bytes() for file in folder.glob("*.onnx")}
        for name, content in traced[weights].items():
            (folder / name).write_bytes(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graphs, "write_graphs", write)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[EngineBundle, Network]]:
    """An engine and its float32 network, built when first asked for."""

    @functools.cache
    def build(kind: str, engine: str, precision: str = "fp32") -> tuple[EngineBundle, Network]:
        config, folder = CONFIGS[kind], tmp_path_factory.mktemp("engine")
        state = random_state(config, 0)
        checkpoint.write(folder / "weights", state, config)
        request = WeightsRequest(None, str(folder / "weights"))
        settings = ExportSettings(
            request, folder / "bundle", "own", engine, precision, max_batch=3, device="cpu", verify=False
        )
        return export(settings), network_from_state(config, state)

    return build


def edited(bundle: EngineBundle, folder: Path, edit: Callable[[str, bytes], bytes]) -> EngineBundle:
    """A bundle whose files were changed, and vouched for by its manifest all the same."""
    with write_bundle(folder) as (target, seal):
        for name in bundle.manifest.files:
            (target / name).write_bytes(edit(name, bundle.read(name)))
        seal(replace(bundle.manifest, files={}))
    return EngineBundle.open(folder)


def with_bias(kind: str, value: float) -> Callable[[str, bytes], bytes]:
    """Changes the bias of the middle layer: one number of it is set, in either kind of file."""

    def edit(name: str, content: bytes) -> bytes:
        if name.endswith(".safetensors"):
            state = load(content)
            state[key(kind) + ".bias"][3] = value
            return save(state)
        model = onnx.load_from_string(content)
        for tensor in model.graph.initializer:
            if tensor.name == MIDDLE[kind][0] + ".bias":
                array = numpy_helper.to_array(tensor).copy()
                array[3] = value
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return model.SerializeToString()

    return edit


def scaled(kind: str) -> Callable[[str, bytes], bytes]:
    """Gives the middle layer weights that fit float16, and products that do not."""

    def edit(name: str, content: bytes) -> bytes:
        if name.endswith(".safetensors"):
            state = load(content)
            state[key(kind) + ".weight"] *= 3e4
            return save(state)
        model = onnx.load_from_string(content)
        wanted = [node for node in model.graph.node if node.name.startswith(MIDDLE[kind][0] + "/")]
        weights = {node.input[1] for node in wanted if node.op_type == "MatMul"}
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                array = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(array * array.dtype.type(3e4), tensor.name))
        return model.SerializeToString()

    return edit


def look(bundle: EngineBundle, network: Network, graph: str) -> LayerReport:
    return {report.graph: report for report in debug_layers(bundle, network, CPU, seed=1)}[graph]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("torch", "fp32"),
        ("torch", "fp16"),
        ("torch", "bf16"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("openvino", "fp32"),
    ],
)
def test_sound(kind: str, engine: str, precision: str, made: Callable) -> None:
    reports = debug_layers(*made(kind, engine, precision), CPU, seed=1)
    assert [report.graph for report in reports] == [
        *(["spectral_head"] if kind == "npnet" else []),
        MIDDLE[kind][1],
    ]
    for report in reports:
        assert len(report.layers) > 15
        assert (
            any(MIDDLE[kind][0] in layer.name for layer in report.layers) or report.graph == "spectral_head"
        )
        assert report.diverging is None
        assert report.not_finite is None
        assert "no layer diverges" in str(report)
        assert precision == "fp32" or any(layer.rms > 0 for layer in report.layers)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
class TestBroken:
    def test_perturbed_weight(self, engine: str, kind: str, made: Callable, tmp_path: Path) -> None:
        bundle, network = made(kind, engine)
        report = look(edited(bundle, tmp_path / "b", with_bias(kind, 2.0)), network, MIDDLE[kind][1])
        assert report.diverging is not None
        assert report.diverging.name.split("/")[0] == MIDDLE[kind][0]
        assert report.not_finite is None
        before = report.layers[: report.layers.index(report.diverging)]
        assert max(layer.relative for layer in before) < 1e-5
        assert f"first layer that diverges: {report.diverging.name} ({report.diverging.kind})" in str(report)

    def test_nan_weight(self, engine: str, kind: str, made: Callable, tmp_path: Path) -> None:
        bundle, network = made(kind, engine)
        report = look(edited(bundle, tmp_path / "b", with_bias(kind, math.nan)), network, MIDDLE[kind][1])
        assert report.not_finite is not None
        assert report.not_finite == report.diverging or math.isnan(report.diverging.relative)
        assert report.not_finite.name.split("/")[0] == MIDDLE[kind][0]
        assert 0 < report.not_finite.not_finite < report.not_finite.values  # one channel
        assert f"first NaN or infinity: {report.not_finite.name}" in str(report)

    def test_overflow(
        self, engine: str, kind: str, made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle, network = made(kind, engine, "fp16")
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        state[key(kind) + ".weight"] *= 3e4
        original = graphs.graph_bytes
        monkeypatch.setattr(
            graphs, "graph_bytes", lambda _: {n: scaled(kind)(n, c) for n, c in original(network).items()}
        )
        bundle = edited(bundle, tmp_path / "b", scaled(kind))
        try:
            report = look(bundle, network_from_state(network.config, state), MIDDLE[kind][1])
        except BackendError as error:
            if engine != "openvino":
                raise
            pytest.skip(str(error))  # there are CPUs without fp16
        assert report.not_finite is not None
        assert report.not_finite.name.split("/")[0] == MIDDLE[kind][0]
        before = report.layers[: report.layers.index(report.not_finite)]
        assert max(layer.relative for layer in before) < 2e-2


class TestGraphs:
    def test_other_operators(self, made: Callable, tmp_path: Path) -> None:
        def edit(name: str, content: bytes) -> bytes:
            model = onnx.load_from_string(content)
            for node in model.graph.node:
                if node.op_type == "Relu":
                    node.op_type = "Sigmoid"
            return model.SerializeToString()

        bundle, network = made("npnet", "onnxruntime")
        with pytest.raises(ExportError, match=r"spectral_head: .*\(Sigmoid\) in place of .*\(Relu\), behind"):
            debug_layers(edited(bundle, tmp_path / "b", edit), network, CPU, 1)

    def test_changed_file_is_not_run(self, made: Callable, tmp_path: Path) -> None:
        bundle, network = made("npnet", "onnxruntime")
        other = edited(bundle, tmp_path / "b", lambda name, content: content)
        (other.path / "prompt_half.onnx").write_bytes(b"")
        with pytest.raises(BundleError, match="is not the file the bundle was written with"):
            debug_layers(other, network, CPU, 1)

    def test_without_onnxruntime(self, made: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(BackendError, match=r"not installed: pip install 'npnet-runtime\[cpu\]'"):
            debug_layers(*made("npnet", "onnxruntime"), CPU, 1)


class TestTensorRT:
    """Built for real where TensorRT for RTX is installed; run on ONNX Runtime in the place of the library."""

    @pytest.fixture
    def bundle(self, made: Callable) -> EngineBundle:
        manifest = made("npnet", "torch", "fp16")[0].manifest
        options = {"--opt-batch": 2, "--compute-capability": ["8.9"]}
        rtx = replace(manifest, engine="tensorrt-rtx", build_options=options)
        return replace(made("npnet", "torch", "fp16")[0], manifest=rtx)

    @pytest.fixture(autouse=True)
    def _no_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if torch.cuda.is_available():
            pytest.skip("shows what happens without a driver")
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    def test_built_with_every_layer_an_output(
        self, bundle: EngineBundle, made: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trt = pytest.importorskip("tensorrt_rtx")
        logs = []
        monkeypatch.setattr(graphs, "new_log", lambda trt: logs.append(original(trt)) or logs[-1])
        original = __import__("npnet_runtime.backends.tensorrt_module", fromlist=["new_log"]).new_log
        with pytest.raises(
            BackendError, match=r"cannot load spectral_head, every layer an output:\n(.*\n)*.*CUDA"
        ):
            debug_layers(bundle, made("npnet", "torch", "fp16")[1], CPU, 1)
        assert trt.__version__
        assert any(line.startswith("[NETWORK] spectral_head, every layer") for line in logs[0].lines)

    def test_outputs_are_bound_by_name(
        self, bundle: EngineBundle, made: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Engine:
            """Writes what ONNX Runtime gives into the tensors that were bound."""

            def __init__(self, trt: object, content: bytes, log: object, device: torch.device) -> None:
                self.content = content

            def run(self, inputs: State, outputs: State) -> None:
                import onnxruntime

                session = onnxruntime.InferenceSession(self.content, providers=["CPUExecutionProvider"])
                values = session.run(list(outputs), {n: t.numpy() for n, t in inputs.items()})
                for tensor, value in zip(outputs.values(), values, strict=True):
                    tensor.copy_(torch.from_numpy(value))

        runtime = SimpleNamespace(deserialize_cuda_engine=lambda content: content)
        stand_in = SimpleNamespace(__name__="tensorrt_rtx", Runtime=lambda log: runtime)
        asked: list[BuildRequest] = []

        def build(
            trt: object, log: object, engine: str, name: str, graph: bytes, request: BuildRequest
        ) -> bytes:
            asked.append(request)
            return graph

        monkeypatch.setattr(graphs, "import_tensorrt", lambda engine: stand_in)
        monkeypatch.setattr(graphs, "new_log", lambda trt: None)
        monkeypatch.setattr(graphs, "LoadedEngine", Engine)
        monkeypatch.setattr(
            graphs,
            "build_engine",
            lambda trt, log, engine, name, content, request: asked.append(request) or content,
        )
        reports = debug_layers(bundle, made("npnet", "torch", "fp16")[1], CPU, 1)
        assert [report.diverging for report in reports] == [None, None]
        assert all(any(layer.rms > 0 for layer in report.layers) for report in reports)
        assert "built again" in str(reports[0])
        assert (asked[0].options.opt_batch, asked[0].options.compute_capability) == (2, ("8.9",))


class TestAoti:
    @pytest.fixture
    def bundle(self, made: Callable) -> EngineBundle:
        other = made("npnet", "torch", "fp16")[0]
        return replace(other, manifest=replace(other.manifest, engine="aoti"))

    def test_compiled_with_every_layer_an_output(self, bundle: EngineBundle) -> None:
        """One graph of the two: each is compiled for seconds."""
        state = random_state(SMALL, 0)
        state["spectral_head.u_mlp.2.weight"] *= 3e5  # overflows float16
        inputs = tuple(torch.randn(1, *shape) for shape in ((32, 32), (32,), (32, 32)))
        layers = aoti_layers(bundle, network_from_state(SMALL, state), CPU)("spectral_head", inputs)
        broken = LayerReport("spectral_head", layers, 2e-2, "").not_finite
        assert broken is not None
        assert broken.name == "u_mlp.2"
        assert [layer.name for layer in layers[:3]] == ["u_mlp (its input)", "u_mlp.0", "u_mlp.1"]
        assert layers[-1].name == "f"
        assert all(0 < layer.relative < 2e-2 for layer in layers[1:3])

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_sound(self, kind: str, made: Callable) -> None:
        for report in debug_layers(*made(kind, "aoti", "fp16"), CPU, 1):
            assert report.diverging is None
            assert any(layer.rms > 0 for layer in report.layers)


def test_command(made: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = edited(made("npnet", "torch")[0], tmp_path / "b", with_bias("npnet", math.nan))
    assert main(["verify", str(bundle.path), "--samples", "2", "--device", "cpu", "--debug-layers"]) == 1
    printed = capsys.readouterr()
    assert "NaN or infinity: seeds 1000, 1001" in printed.out
    assert "spectral_head: 22 layers, the bundle's own modules" in printed.out
    assert "first NaN or infinity: swin.stages.0.1.mlp.fc1 (Linear), 196 of 3136 values" in printed.out
    assert "the noise of seed 1000" in printed.err
    assert "does not agree with float32 PyTorch" in printed.err


class TestRule:
    """A layer diverges by its relative RMS error, which a NaN is above of."""

    def report(self, *given: list[float]) -> LayerReport:
        expected = torch.tensor([3.0, 4.0])
        pairs = ((str(index), "k", torch.tensor(value), expected) for index, value in enumerate(given))
        return LayerReport("g", compare_layers(pairs), 0.1, "n")

    def test_threshold(self) -> None:
        report = self.report([3.0, 4.0], [3.0, 4.4], [3.0, 4.8], [0.0, 0.0])
        assert [layer.relative for layer in report.layers] == pytest.approx([0, 0.08, 0.16, 1])
        assert report.layers[2].rms == pytest.approx(0.8 / math.sqrt(2))
        assert report.layers[2].max_abs == pytest.approx(0.8)
        assert report.diverging is report.layers[2]

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_not_finite(self, value: float) -> None:
        report = self.report([3.0, 4.0], [3.0, value], [value, value])
        assert report.diverging is report.not_finite is report.layers[1]
        assert (report.layers[1].not_finite, report.layers[1].values) == (1, 2)
        assert "first NaN or infinity: 1 (k), 1 of 2 values" in str(report)

    @pytest.mark.parametrize("kind", ["Softmax", "Cast of Softmax"])
    def test_softmax_is_judged_by_its_range(self, kind: str) -> None:
        """Relative to its values, most of them small, the rounding of large scores would count too much."""
        given, expected = torch.tensor([0.0, 0.02]), torch.tensor([0.0, 0.01])
        (layer,) = compare_layers([("a", kind, given, expected)])
        assert layer.relative == layer.rms == pytest.approx(0.01 / math.sqrt(2))

    def test_nothing_where_something_was(self) -> None:
        zeros, ones = torch.zeros(3), torch.ones(3)
        (same,) = compare_layers([("a", "k", zeros, zeros)])
        (more,) = compare_layers([("a", "k", ones, zeros)])
        assert (same.relative, more.relative) == (0, math.inf)

    def test_short(self) -> None:
        sound = self.report(*([3.0, 4.0 + index / 1e3] for index in range(50)))
        assert len(str(sound).splitlines()) == 9
        broken = self.report(*([3.0, 4.0 + (index > 20)] for index in range(50)))
        assert len(str(broken).splitlines()) == 10
        assert "> 21 " in str(broken)


def test_nodes_are_named_by_their_modules(made: Callable) -> None:
    bundle, _ = made("npnet", "onnxruntime")
    names = [node.name for node in onnx.load_from_string(bundle.read("prompt_half.onnx")).graph.node]
    for module in ("swin.patch_norm", "swin.stages.0.0.attn.qkv", "swin.norm"):
        assert any(name.startswith(f"{module}/") for name in names)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "aoti", "tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_on_a_gpu(engine: str, precision: str, made: Callable, tmp_path: Path) -> None:
    network = made("npnet", "torch")[1]
    checkpoint.write(tmp_path / "weights", network.state_dict(), SMALL)
    request = WeightsRequest(None, str(tmp_path / "weights"))
    settings = ExportSettings(
        request, tmp_path / "bundle", "own", engine, precision, max_batch=3, device="cuda"
    )
    try:
        bundle = export(settings)
    except NPNetError as error:
        if any(
            reason in str(error) for reason in ("cannot be imported", "no CUDA provider", "it is built for")
        ):
            pytest.skip(str(error))
        raise
    for report in debug_layers(bundle, network, torch.device("cuda", 0), 1):
        assert report.diverging is None, str(report)
        assert report.not_finite is None

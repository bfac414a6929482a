"""The nodes and their files inside of ComfyUI, whose modules are stood in for as far as they are asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from npnet_runtime import EngineBundle, NPNetConfig
from npnet_runtime.errors import BackendError, CheckpointError, InputError, NPNetError
from npnet_runtime.integrations.comfyui import conversion, files, host, loaders, nodes
from npnet_runtime.integrations.comfyui.__main__ import install, main
from npnet_runtime.integrations.comfyui.files import NO_ENGINE, NO_WEIGHTS, find
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.weights.checkpoint import fitting_models
from npnet_runtime.weights.published import published_name

ROOT = Path(__file__).parents[2]
FOLDER = Path(nodes.__file__).parent
NAMES = sorted(path.stem for path in (FOLDER / "example_workflows").glob("*.json"))
# What the nodes of ComfyUI in the examples give, which of their inputs are links to what, their widgets.
CORE_OUTPUTS = {
    "CheckpointLoaderSimple": ("MODEL", "CLIP", "VAE"),
    "CLIPTextEncode": ("CONDITIONING",),
    "EmptyLatentImage": ("LATENT",),
    "RandomNoise": ("NOISE",),
    "CFGGuider": ("GUIDER",),
    "KSamplerSelect": ("SAMPLER",),
    "BasicScheduler": ("SIGMAS",),
    "SamplerCustomAdvanced": ("LATENT", "LATENT"),
    "VAEDecode": ("IMAGE",),
    "SaveImage": (),
}
CORE_LINKS = {
    "clip": "CLIP",
    "model": "MODEL",
    "vae": "VAE",
    "positive": "CONDITIONING",
    "negative": "CONDITIONING",
    "noise": "NOISE",
    "guider": "GUIDER",
    "sampler": "SAMPLER",
    "sigmas": "SIGMAS",
    "latent_image": "LATENT",
    "samples": "LATENT",
    "images": "IMAGE",
}
CORE_WIDGETS = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CLIPTextEncode": ("text",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "RandomNoise": ("noise_seed", None),  # then what becomes of it after a run
    "CFGGuider": ("cfg",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "SaveImage": ("filename_prefix",),
}


def read(form: str, name: str) -> Any:
    return json.loads((FOLDER / f"{form}_workflows" / f"{name}.json").read_text())


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Modules of ComfyUI: devices, folders, nodes, the server; models in `tmp_path/models`."""
    freed: list[tuple[int, torch.device]] = []
    shown: list[tuple[str, str]] = []
    registry: dict[str, tuple[list[str], set[str]]] = {}
    management: Any = ModuleType("comfy.model_management")
    management.get_torch_device = lambda: state.device
    management.free_memory = lambda size, device: freed.append((size, device))
    comfy: Any = ModuleType("comfy")
    comfy.model_management = management
    paths: Any = ModuleType("folder_paths")
    paths.models_dir = str(tmp_path / "models")

    def add(name: str, folder: str, is_default: bool = False) -> None:
        known = registry.setdefault(name, ([], set()))[0]
        if folder not in known:
            known.append(folder)

    paths.add_model_folder_path = add
    paths.get_folder_paths = lambda name: registry[name][0][:]
    core: Any = ModuleType("nodes")
    core.NODE_CLASS_MAPPINGS = {"RandomNoise": SimpleNamespace(CATEGORY="sampling/noise", __module__="x")}
    server: Any = ModuleType("server")
    server.PromptServer = SimpleNamespace(
        instance=SimpleNamespace(send_progress_text=lambda text, node: shown.append((node, text)))
    )
    for module in (comfy, management, paths, core, server):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    state = SimpleNamespace(
        device=torch.device("cpu"),
        freed=freed,
        shown=shown,
        models=tmp_path / "models",
        registry=registry,
        nodes=core.NODE_CLASS_MAPPINGS,
        add=add,
    )
    return state


@pytest.fixture
def folder(comfy: SimpleNamespace) -> Path:
    """`models/golden_noise`, once the nodes were loaded."""
    files.register_folders()
    return comfy.models / "golden_noise"


class TestDeclarations:
    def test_every_node(self, folder: Path) -> None:
        classes, titles = nodes.mappings()
        assert set(classes) == set(titles)
        assert len(set(titles.values())) == len(titles)
        for node in classes.values():
            declared: Any = node.INPUT_TYPES()  # type: ignore[attr-defined]
            function = getattr(node, node.FUNCTION)  # type: ignore[attr-defined]
            names = [*declared["required"], *declared.get("optional", {}), *declared.get("hidden", {})]
            count = function.__code__.co_argcount
            assert sorted(names) == sorted(function.__code__.co_varnames[1:count])
            for kind, *options in (*declared["required"].values(), *declared.get("optional", {}).values()):
                assert isinstance(kind, (str, list))
                if isinstance(kind, list) and options:
                    assert options[0].get("default", kind[0]) in kind

    def test_ids_of_our_own(self, comfy: SimpleNamespace) -> None:
        own, _ = nodes.mappings()
        assert {name for name, node in own.items() if not getattr(node, "DEPRECATED", False)} == {
            "NPNetRuntimeLoadEngine",
            "NPNetRuntimeLoadWeights",
            "NPNetRuntimeGoldenNoise",
            "NPNetRuntimePlainAndGolden",
            "NPNetRuntimeSideBySide",
        }
        assert {"NPNetLoadEngine", "NPNetGoldenNoise"} <= set(own)

    def test_another_node_of_the_old_id(self, comfy: SimpleNamespace) -> None:
        comfy.nodes["NPNetGoldenNoise"] = type("Theirs", (), {"__module__": "somebody.else"})
        own, titles = nodes.mappings()
        assert "NPNetGoldenNoise" not in own
        assert "NPNetGoldenNoise" not in titles
        assert "NPNetLoadEngine" in own
        comfy.nodes.update(own)
        assert set(nodes.mappings()[0]) == set(own)  # ours, loaded again

    def test_beside_the_nodes_of_noise(self, comfy: SimpleNamespace) -> None:
        assert host.noise_menu() == "sampling/noise"
        del comfy.nodes["RandomNoise"]
        assert host.noise_menu() == "model/sampling/noise"


class TestExamples:
    @pytest.mark.parametrize("name", NAMES)
    def test_links_and_widgets(self, name: str) -> None:
        """Every link carries what its input takes, every widget a value it allows, every node is used."""
        graph, used = read("api", name), {"13"}
        for node in graph.values():
            ours = nodes.mappings()[0].get(node["class_type"])
            declared = ours.INPUT_TYPES() if ours else {}  # type: ignore[attr-defined]
            known = {**declared.get("required", {}), **declared.get("optional", {})}
            assert not ours or set(declared["required"]) <= set(node["inputs"]) <= set(known)
            for key, value in node["inputs"].items():
                if isinstance(value, list):
                    source = graph[value[0]]["class_type"]
                    mine: Any = nodes.mappings()[0].get(source)
                    outputs = mine.RETURN_TYPES if mine else CORE_OUTPUTS[source]
                    assert outputs[value[1]] == (known[key][0] if ours else CORE_LINKS[key]), key
                    used.add(value[0])
                elif ours and isinstance(known[key][0], list) and key != "engine":
                    assert value in known[key][0]
        assert used == set(graph)

    @pytest.mark.parametrize("name", NAMES)
    def test_the_picture_is_the_graph(self, name: str) -> None:
        """What the browser opens says the same as what scripts queue, has places, notes and a Save node."""
        drawn, graph = read("example", name), {}
        links = {link[0]: link for link in drawn["links"]}
        classes = nodes.mappings()[0]
        places = []
        for node in drawn["nodes"]:
            places.append((*node["pos"], *node["size"]))
            if node["type"] == "MarkdownNote":
                continue
            ours: Any = classes.get(node["type"])
            if ours:
                sockets = ("NOISE", "CONDITIONING", "NPNET_ENGINE", "LATENT", "IMAGE")
                required = ours.INPUT_TYPES()["required"]
                widgets = [key for key, (kind, *_) in required.items() if kind not in sockets]
            else:
                widgets = list(CORE_WIDGETS.get(node["type"], ()))
            assert len(widgets) == len(node["widgets_values"])
            inputs = dict(zip(widgets, node["widgets_values"], strict=True))
            inputs.pop(None, None)  # type: ignore[call-overload]
            for slot, socket in enumerate(node["inputs"]):
                _, source, output, target, into, kind = links[socket["link"]]
                assert (target, into, kind) == (node["id"], slot, socket["type"])
                inputs[socket["name"]] = [str(source), output]
            graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
            for slot, output in enumerate(node["outputs"]):
                leading = {
                    link for link, (_, *start, _, _, _) in links.items() if start == [node["id"], slot]
                }
                assert set(output["links"] or ()) == leading
        assert graph == read("api", name)
        assert {"MarkdownNote", "SaveImage"} <= {node["type"] for node in drawn["nodes"]}
        assert drawn["last_node_id"] == max(node["id"] for node in drawn["nodes"])
        for index, (x, y, width, height) in enumerate(places):
            for a, b, wide, high in places[:index]:
                assert x >= a + wide or a >= x + width or y >= b + high or b >= y + height, "nodes overlap"


class TestFolders:
    def test_names(
        self, comfy: SimpleNamespace, folder: Path, small_bundle: EngineBundle, tmp_path: Path
    ) -> None:
        """Of our folder, the old one and those of `extra_model_paths.yaml`; asked for at every refresh."""
        assert files.engine_names() == [NO_ENGINE]
        assert files.weights_names() == [NO_WEIGHTS]
        for place in (folder / "sdxl", comfy.models / "npnet" / "old", tmp_path / "extra" / "team" / "turbo"):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(small_bundle.path)
        comfy.add("golden_noise", str(tmp_path / "extra"))
        (folder / "sdxl.pth").touch()
        (folder / "readme.txt").touch()
        (folder / ".engines").mkdir()
        (folder / ".engines" / "hidden.pth").touch()
        assert files.engine_names() == ["old", "sdxl", "team/turbo"]
        assert files.weights_names() == ["sdxl.pth"]
        for name in files.engine_names():
            assert EngineBundle.open(find(name, "engine", "")).digest == small_bundle.digest

    def test_as_it_was_typed(self, folder: Path) -> None:
        (folder / "sdxl").mkdir()
        for text in ("sdxl", " sdxl \n", '"sdxl"', "' sdxl'", f'"{folder / "sdxl"}" ', str(folder / "sdxl")):
            assert find(text, "engine", "") == folder / "sdxl"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "engine: nothing is chosen; do this"),
            (' " " ', "nothing is chosen"),
            (NO_ENGINE, "nothing is chosen; do this"),
            ("absent", "no 'absent' in .*golden_noise.*; do this, then press R"),
            ("../x", "expected a name from the list or an absolute path, given '../x' with '..'"),
            ("/models/../x", "with '..'"),
        ],
    )
    def test_refused(self, text: str, said: str, folder: Path) -> None:
        with pytest.raises(InputError, match=said):
            find(text, "engine", "do this")

    def test_models_that_cannot_be_written(self, comfy: SimpleNamespace) -> None:
        comfy.models.touch()
        files.register_folders()
        assert files.engine_names() == [NO_ENGINE]


class TestLoadEngine:
    def test_by_name(self, comfy: SimpleNamespace, folder: Path, small_bundle: EngineBundle) -> None:
        (folder / "sdxl").symlink_to(small_bundle.path)
        node = loaders.LoadEngine
        assert node.INPUT_TYPES()["required"]["engine"][0] == ["sdxl"]
        assert node.VALIDATE_INPUTS("sdxl") is True
        assert node.IS_CHANGED("sdxl", device="auto") == small_bundle.digest
        golden, _ = node().load("sdxl", "auto", node="6")
        assert golden.bundle.digest == small_bundle.digest
        size = sum(file.bytes for file in small_bundle.manifest.files.values())
        assert comfy.freed == [(size, torch.device("cpu"))]
        assert comfy.shown == [("6", f"small: {small_bundle.manifest.engine} in fp32 on cpu")]

    def test_linked(self, folder: Path) -> None:
        """What is linked is None before the graph runs; one that raised would be loaded anew at every run."""
        assert loaders.LoadEngine.VALIDATE_INPUTS(None, {"engine": "STRING"}) is True
        assert loaders.LoadEngine.IS_CHANGED(None, device="auto") == ""
        assert (
            loaders.LoadEngine.IS_CHANGED("absent") == loaders.LoadWeights.IS_CHANGED("absent") == "missing"
        )
        assert "link of type MODEL" in str(loaders.LoadEngine.VALIDATE_INPUTS(None, {"engine": "MODEL"}))

    def test_absent(self, folder: Path, tmp_path: Path) -> None:
        said = str(loaders.LoadEngine.VALIDATE_INPUTS("absent"))
        assert "npnet-export --model sdxl --engine auto --output models/golden_noise/sdxl" in said
        assert "expected the folder of an engine bundle" in str(
            loaders.LoadEngine.VALIDATE_INPUTS(str(tmp_path / "x"))
        )

    @pytest.mark.parametrize(("device", "ours"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu")])
    def test_device(self, comfy: SimpleNamespace, device: str, ours: str) -> None:
        comfy.device = torch.device(device)
        assert host.choose_device("auto", 0) == torch.device(ours)

    def test_devices(self, comfy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        assert host.device_names() == ["auto", "cpu"]
        with pytest.raises(InputError, match="device: expected auto, cpu, given cuda:3"):
            host.choose_device("cuda:3", 0)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        comfy.device = torch.device("cuda:0")
        assert host.choose_device("cuda:1", 7) == torch.device("cuda:1")
        assert host.choose_device("cpu", 7) == torch.device("cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in the published form, of SDXL's size, as people have them."""
    path = tmp_path_factory.mktemp("weights") / "sdxl.pth"
    tree: dict[str, Any] = {}
    for own, tensor in random_state(NPNetConfig(), 0).items():
        group, _, rest = published_name(own).partition(".")
        if rest:
            tree.setdefault(group, {})[rest] = tensor
        else:
            tree[group] = tensor.reshape(1)
    torch.save(tree, path)
    return path


class TestLoadWeights:
    def test_made_once(
        self, published: Path, comfy: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "sdxl.pth").symlink_to(published)
        assert fitting_models(published)[0] == "sdxl"
        node = loaders.LoadWeights
        assert node.INPUT_TYPES()["required"]["weights"][0] == ["sdxl.pth"]
        assert node.VALIDATE_INPUTS("sdxl.pth") is True
        golden, info = node().load("sdxl.pth", device="cpu", node="3")
        assert info.startswith("sdxl: torch in fp32 on cpu")
        assert golden.bundle.manifest.weights["sha256"] == node.IS_CHANGED("sdxl.pth")
        assert comfy.shown[0] == ("3", "making an engine of sdxl.pth, once")
        assert any("comparing with float32 PyTorch" in text for _, text in comfy.shown)
        assert files.engine_names() == [NO_ENGINE]  # hidden

        started: list[Any] = []
        monkeypatch.setattr(conversion, "_export", lambda *arguments: started.append(arguments))
        again, _ = node().load("sdxl.pth", device="cpu")
        assert again.bundle.digest == golden.bundle.digest
        assert not started
        (golden.bundle.path / "manifest.json").write_text("{}")
        with pytest.raises(NPNetError):
            node().load("sdxl.pth", device="cpu")
        assert len(started) == 1  # made again

    def test_what_fits_nothing(self, folder: Path) -> None:
        torch.save({"a": torch.zeros(3)}, folder / "other.pth")
        with pytest.raises(CheckpointError, match="other.pth fits none of sdxl.*choose its model"):
            loaders.LoadWeights().load("other.pth")
        with pytest.raises(
            BackendError, match="no engine could be made of other.pth:\n.*no NPNet checkpoint"
        ):
            loaders.LoadWeights().load("other.pth", model="sdxl")
        assert "weights: expected a file" in str(loaders.LoadWeights.VALIDATE_INPUTS(str(folder)))


class TestInstallation:
    def test_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "custom_nodes").mkdir()
        assert main([str(tmp_path)]) == 0
        target = tmp_path / "custom_nodes" / "npnet-runtime"
        assert f"wrote {target}" in capsys.readouterr().out
        names: dict[str, Any] = {}
        exec((target / "__init__.py").read_text(), names)
        assert "NPNetRuntimeGoldenNoise" in names["NODE_CLASS_MAPPINGS"]
        assert sorted(path.stem for path in (target / "example_workflows").glob("*.json")) == NAMES
        assert install(tmp_path) == target  # again, as after an update

    def test_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([str(tmp_path)]) == 1
        assert "expected the folder of a ComfyUI" in capsys.readouterr().err
        clone = tmp_path / "custom_nodes" / "npnet-runtime"
        clone.mkdir(parents=True)
        (clone / "__init__.py").write_text("theirs")
        with pytest.raises(NPNetError, match="was not made by this command"):
            install(tmp_path)
        assert (clone / "__init__.py").read_text() == "theirs"

    def test_clone(self, tmp_path: Path) -> None:
        """ComfyUI imports a folder's `__init__.py` under the name of its path; nothing is installed."""
        clone = tmp_path / "custom_nodes" / "npnet-runtime"
        clone.parent.mkdir()
        clone.symlink_to(ROOT)
        code = f"""
import importlib.util, sys
sys.path = [p for p in sys.path if p != {str(ROOT)!r}]
name = {str(clone)!r}
spec = importlib.util.spec_from_file_location(name, name + "/__init__.py")
module = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert "NPNetRuntimeGoldenNoise" in module.NODE_CLASS_MAPPINGS
import npnet_runtime
assert npnet_runtime.__file__.startswith(name), npnet_runtime.__file__
assert not any(p.startswith(name) for p in sys.path)
for other in ("kernels", "export", "training"):
    assert importlib.util.find_spec(other) is None, other
from npnet_runtime.integrations.comfyui.conversion import _roots
assert all(root.startswith(name) for root in _roots()), _roots()
"""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def test_examples_of_a_clone(self) -> None:
        assert sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json")) == NAMES

    def test_requirements_leave_torch_alone(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        lines = (ROOT / "requirements.txt").read_text().splitlines()
        given = {line for line in lines if line and not line.startswith("#")}
        needed = {*project["dependencies"], *project["optional-dependencies"]["export"]}
        assert given == {need for need in needed if not need.startswith("torch")}
        assert project["optional-dependencies"]["comfyui"] == ["npnet-runtime[export]"]

"""The nodes against ComfyUI's documented protocol, in a small stand-in for its executor.

ComfyUI is not on the package registry. The stand-in follows docs.comfy.org (custom-nodes/backend): how
nodes are found in a folder, declared, validated and called, and how a sampler asks a NOISE for its noise.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.errors import BundleError, InputError
from npnet_runtime.integrations.comfyui import nodes as comfy_nodes
from npnet_runtime.integrations.comfyui.noise import ComfyGoldenNoise
from support.networks import SMALL

FOLDER = Path(comfy_nodes.__file__).parent
WORKFLOW = json.loads((FOLDER / "example_workflows" / "golden_noise_sdxl.json").read_text())
EMBEDS = torch.randn(3, *SMALL.text_shape, generator=torch.Generator().manual_seed(1))
# What the nodes of ComfyUI in the example give, and which of their inputs are links to what.
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


class RandomNoise:
    """ComfyUI's: one generator for the batch, or the noises of `batch_index` out of a longer batch."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        shape, generator = latent["samples"].shape, torch.Generator().manual_seed(self.seed)
        if "batch_index" not in latent:
            return torch.randn(shape, generator=generator)
        indices = latent["batch_index"]
        drawn = [torch.randn(1, *shape[1:], generator=generator) for _ in range(max(indices) + 1)]
        return torch.cat([drawn[index] for index in indices])


def latent(batch: int, **more: Any) -> dict[str, Any]:
    return {"samples": torch.zeros(batch, *SMALL.latent_shape)} | more


def call(name: str, **inputs: Any) -> Any:
    """A node as the executor calls it: validated, a fresh object, its FUNCTION by keyword, a tuple back."""
    node = comfy_nodes.NODE_CLASS_MAPPINGS[name]
    assert set(inputs) == set(node.INPUT_TYPES()["required"])
    validate = getattr(node, "VALIDATE_INPUTS", None)
    if validate is not None:
        wanted = inspect.signature(validate).parameters
        valid = validate(**{key: value for key, value in inputs.items() if key in wanted})
        assert valid is True, valid
    result = getattr(node(), node.FUNCTION)(**inputs)
    assert isinstance(result, tuple)
    assert len(result) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    return result[0]


@pytest.fixture
def engine(small_bundle: EngineBundle) -> GoldenNoise:
    path = str(small_bundle.path)
    return call("NPNetLoadEngine", engine=path, long_prompts="error", other_sizes="error")


def noise_of(engine: GoldenNoise, embeds: Tensor, seed: int = 5) -> ComfyGoldenNoise:
    conditioning = [[embeds, {"pooled_output": torch.zeros(1, 8)}]]
    return call("NPNetGoldenNoise", noise=RandomNoise(seed), positive=conditioning, engine=engine)


class TestProtocol:
    def test_declarations(self) -> None:
        assert set(comfy_nodes.NODE_CLASS_MAPPINGS) == set(comfy_nodes.NODE_DISPLAY_NAME_MAPPINGS)
        for node in comfy_nodes.NODE_CLASS_MAPPINGS.values():
            assert callable(getattr(node, node.FUNCTION))
            assert isinstance(node.CATEGORY, str)
            parameters = list(inspect.signature(getattr(node, node.FUNCTION)).parameters)[1:]
            assert parameters == list(node.INPUT_TYPES()["required"])
            for declared in node.INPUT_TYPES()["required"].values():
                assert isinstance(declared, tuple)
                kind, options = declared[0], declared[1] if len(declared) > 1 else {}
                assert isinstance(kind, (str, list))
                assert isinstance(kind, str) or options["default"] in kind

    def test_folder_in_custom_nodes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """ComfyUI imports a folder's `__init__.py` under the name of its path."""
        name = "/somewhere/custom_nodes/npnet"
        spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        assert module.NODE_CLASS_MAPPINGS is comfy_nodes.NODE_CLASS_MAPPINGS

    def test_one_line_in_custom_nodes(self) -> None:
        names: dict[str, Any] = {}
        exec("from npnet_runtime.integrations.comfyui import *", names)
        assert {"NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"} <= set(names)

    def test_example_workflow(self) -> None:
        """Every link carries what its input takes, every widget a value it allows, every node is used."""
        used = {"13"}
        for node in WORKFLOW.values():
            ours = comfy_nodes.NODE_CLASS_MAPPINGS.get(node["class_type"])
            declared = ours.INPUT_TYPES()["required"] if ours else {}
            assert not ours or set(node["inputs"]) == set(declared)
            for key, value in node["inputs"].items():
                if isinstance(value, list):
                    source = WORKFLOW[value[0]]["class_type"]
                    mine = comfy_nodes.NODE_CLASS_MAPPINGS.get(source)
                    outputs = mine.RETURN_TYPES if mine else CORE_OUTPUTS[source]
                    assert outputs[value[1]] == (declared[key][0] if ours else CORE_LINKS[key]), key
                    used.add(value[0])
                elif ours and isinstance(declared[key][0], list):
                    assert value in declared[key][0]
        assert used == set(WORKFLOW)


class TestNoise:
    def test_golden(self, engine: GoldenNoise) -> None:
        given = noise_of(engine, EMBEDS[:1]).generate_noise(latent(2))
        assert torch.equal(given, engine(RandomNoise(5).generate_noise(latent(2)), EMBEDS[:1]))
        assert given.device.type == "cpu"

    def test_seed(self, engine: GoldenNoise) -> None:
        assert noise_of(engine, EMBEDS[:1], seed=2**64 - 1).seed == 2**64 - 1

    @pytest.mark.parametrize("indices", [[0, 1], [2], [1, 1], [3, 0]])
    def test_batch_index(self, engine: GoldenNoise, indices: list[int]) -> None:
        noise = noise_of(engine, EMBEDS[:1])
        whole = noise.generate_noise(latent(4))
        given = noise.generate_noise(latent(len(indices), batch_index=indices))
        torch.testing.assert_close(given, whole[indices], atol=2e-4, rtol=0)

    @pytest.mark.parametrize(("prompts", "batch"), [(1, 3), (2, 2), (2, 4), (2, 3), (3, 2)])
    def test_prompts_are_dealt_out_as_by_the_samplers(
        self, engine: GoldenNoise, prompts: int, batch: int
    ) -> None:
        """ComfyUI repeats a batch of conditions as a whole: a, b, a, b; diffusers: a, a, b, b."""
        given = noise_of(engine, EMBEDS[:prompts]).generate_noise(latent(batch))
        noise = RandomNoise(5).generate_noise(latent(batch))
        each = torch.stack([EMBEDS[index % prompts] for index in range(batch)])
        assert torch.equal(given, engine(noise, each))

    def test_does_not_change(self, engine: GoldenNoise) -> None:
        noise = noise_of(engine, EMBEDS[:1])
        first, empty = noise.generate_noise(latent(2)), latent(2)
        noise.generate_noise(empty)
        assert torch.equal(noise.generate_noise(latent(2)), first)
        assert empty.keys() == {"samples"}
        assert not empty["samples"].any()
        with pytest.raises(dataclasses.FrozenInstanceError):
            noise.noise = None  # type: ignore[misc]

    def test_policies(self, small_bundle: EngineBundle) -> None:
        path = str(small_bundle.path)
        engine = call("NPNetLoadEngine", engine=path, long_prompts="average", other_sizes="transfer")
        noise = noise_of(engine, EMBEDS[:2].reshape(1, 10, 12))
        assert noise.generate_noise({"samples": torch.zeros(1, 4, 24, 16)}).shape == (1, 4, 24, 16)


class TestErrors:
    """Never the untouched noise."""

    @pytest.mark.parametrize(
        ("conditioning", "said"),
        [
            ([], "expected a CONDITIONING, given list"),
            (None, "expected a CONDITIONING, given NoneType"),
            ([None], "expected entries of embeddings and options, given NoneType"),
            ([[]], "expected entries of embeddings and options, given list"),
            ([[EMBEDS, {}], [EMBEDS, {}]], "expected one prompt, given 2 combined or scheduled"),
            ([[None, {}]], "expected embeddings of a text, given NoneType"),
            ([[EMBEDS[0], {}]], r"given Tensor of shape \(5, 12\)"),
        ],
    )
    def test_conditioning(self, engine: GoldenNoise, conditioning: Any, said: str) -> None:
        with pytest.raises(InputError, match=said):
            call("NPNetGoldenNoise", noise=RandomNoise(0), positive=conditioning, engine=engine)

    def test_long_prompt(self, engine: GoldenNoise) -> None:
        with pytest.raises(InputError, match="10, 12.*tokens="):
            noise_of(engine, EMBEDS[:2].reshape(1, 10, 12)).generate_noise(latent(1))

    @pytest.mark.parametrize("shape", [(1, 4, 24, 16), (1, 16, 16, 16), (1, 4, 3, 16, 16)])
    def test_latents(self, engine: GoldenNoise, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match="noise: expected shape"):
            noise_of(engine, EMBEDS[:1]).generate_noise({"samples": torch.zeros(shape)})

    def test_no_noise(self, engine: GoldenNoise) -> None:
        zeros = SimpleNamespace(seed=0, generate_noise=lambda latent: torch.zeros_like(latent["samples"]))
        noise = call("NPNetGoldenNoise", noise=zeros, positive=[[EMBEDS[:1], {}]], engine=engine)
        with pytest.raises(InputError, match="expected random noise, given zeros.*RandomNoise node"):
            noise.generate_noise(latent(1))

    def test_noise_of_another_kind(self, engine: GoldenNoise) -> None:
        odd = SimpleNamespace(seed=0, generate_noise=lambda latent: [0.0])
        noise = call("NPNetGoldenNoise", noise=odd, positive=[[EMBEDS[:1], {}]], engine=engine)
        with pytest.raises(InputError, match="expected a tensor from SimpleNamespace, given list"):
            noise.generate_noise(latent(1))

    def test_no_engine(self, tmp_path: Path) -> None:
        said = comfy_nodes.LoadGoldenNoiseEngine.VALIDATE_INPUTS(str(tmp_path / "nothing"))
        assert "expected the folder of an engine bundle" in str(said)
        assert "empty name" in str(comfy_nodes.LoadGoldenNoiseEngine.VALIDATE_INPUTS(" "))
        with pytest.raises(BundleError):
            comfy_nodes.LoadGoldenNoiseEngine().load(str(tmp_path), "error", "error")


class TestInsideComfyUI:
    @pytest.fixture
    def comfy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """The two modules of ComfyUI that are asked, as far as they are."""
        freed: list[tuple[int, torch.device]] = []
        management: Any = ModuleType("comfy.model_management")
        management.get_torch_device = lambda: state.device
        management.free_memory = lambda size, device: freed.append((size, device))
        comfy, paths = ModuleType("comfy"), ModuleType("folder_paths")
        comfy.model_management = management  # type: ignore[attr-defined]
        paths.models_dir = str(tmp_path)  # type: ignore[attr-defined]
        for module in (comfy, management, paths):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        state = SimpleNamespace(device=torch.device("cpu"), freed=freed, models=tmp_path)
        return state

    def test_engine_by_name(self, comfy: SimpleNamespace, small_bundle: EngineBundle) -> None:
        (comfy.models / "npnet").mkdir()
        (comfy.models / "npnet" / "sdxl").symlink_to(small_bundle.path)
        assert comfy_nodes.LoadGoldenNoiseEngine.IS_CHANGED("sdxl") == small_bundle.digest
        engine = call("NPNetLoadEngine", engine="sdxl", long_prompts="error", other_sizes="error")
        assert engine.bundle.digest == small_bundle.digest
        size = sum(file.bytes for file in small_bundle.manifest.files.values())
        assert comfy.freed == [(size, torch.device("cpu"))]

    @pytest.mark.parametrize(("device", "ours"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu")])
    def test_device(self, comfy: SimpleNamespace, device: str, ours: str) -> None:
        comfy.device = torch.device(device)
        assert comfy_nodes.comfy_device(0) == torch.device(ours)

"""The nodes against ComfyUI's documented protocol, in a small stand-in for its executor.

ComfyUI is not on the package registry; `tests/comfyui/headless.py` runs the nodes in a checkout of it. The
stand-in follows docs.comfy.org (custom-nodes/backend) and ComfyUI 0.3.64 and 0.8: how nodes are declared,
validated and called, and how a sampler asks a NOISE for its noise.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from npnet_export import ExportSettings, export
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.errors import BundleError, InputError
from npnet_runtime.integrations import comfyui
from npnet_runtime.integrations.comfyui.noise import ComfyGoldenNoise
from support.networks import ANY_SIZE, SMALL

EMBEDS = torch.randn(3, *SMALL.text_shape, generator=torch.Generator().manual_seed(1))
LONG = EMBEDS[:2].reshape(1, 10, 12)
POLICIES = {"strength": 1.0, "long_prompts": "truncate", "other_sizes": "transfer"}


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


def latent(batch: int, *size: int, **more: Any) -> dict[str, Any]:
    return {"samples": torch.zeros(batch, 4, *(size or SMALL.latent_shape[1:]))} | more


def call(name: str, **inputs: Any) -> Any:
    """A node as the executor calls it: validated, a fresh object, its FUNCTION by keyword, a tuple back."""
    node = comfyui.NODE_CLASS_MAPPINGS[name]
    declared = node.INPUT_TYPES()
    assert (
        set(declared["required"])
        <= set(inputs)
        <= {**declared["required"], **declared.get("optional", {})}.keys()
    )
    validate = getattr(node, "VALIDATE_INPUTS", None)
    wanted = inspect.signature(validate).parameters if validate else {}
    for key, (kind, *_) in declared["required"].items():
        if isinstance(kind, list) and key not in wanted:  # what a node validates itself is not looked up
            assert inputs[key] in kind
    if validate is not None:
        valid = validate(**{key: value for key, value in inputs.items() if key in wanted})
        assert valid is True, valid
    hidden = dict.fromkeys(declared.get("hidden", {}), "7")
    result = getattr(node(), node.FUNCTION)(**inputs, **hidden)
    assert isinstance(result, tuple)
    assert len(result) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    return result[0] if len(result) == 1 else result


@pytest.fixture
def engine(small_bundle: EngineBundle) -> GoldenNoise:
    given, info = call("NPNetRuntimeLoadEngine", engine=str(small_bundle.path), device="cpu")
    assert info.startswith(f"small: {small_bundle.manifest.engine} in fp32 on cpu\n")
    return given


def noise_of(engine: GoldenNoise, embeds: Tensor, seed: int = 5, **widgets: Any) -> ComfyGoldenNoise:
    conditioning = [[embeds, {"pooled_output": torch.zeros(1, 8)}]]
    inputs = {"noise": RandomNoise(seed), "positive": conditioning, "engine": engine}
    return call("NPNetRuntimeGoldenNoise", **inputs, **POLICIES | widgets)


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

    def test_a_first_user_gets_an_image(self, engine: GoldenNoise, caplog: pytest.LogCaptureFixture) -> None:
        """Another size and a long prompt with the widgets as they are, and told what became of them."""
        with caplog.at_level(logging.INFO):
            noise = noise_of(engine, LONG, latent_image=latent(1, 24, 16))
            given = noise.generate_noise(latent(1, 24, 16))
        golden = engine.using(tokens="truncate", resolution="transfer")
        assert torch.equal(given, golden(RandomNoise(5).generate_noise(latent(1, 24, 16)), LONG))
        assert "a prompt of 10 tokens: its first 5 are read (long_prompts)" in caplog.text
        assert "128 x 192 pixels: the change of golden noise at 128 x 128 is transferred" in caplog.text

    def test_policies_do_not_load_the_engine_again(self, engine: GoldenNoise) -> None:
        first = noise_of(engine, LONG, long_prompts="average", strength=0.5)
        second = noise_of(engine, LONG)
        assert first.golden.shares_engine(second.golden)
        assert not torch.equal(first.generate_noise(latent(1)), second.generate_noise(latent(1)))
        plain = RandomNoise(5).generate_noise(latent(1))
        assert torch.equal(noise_of(engine, LONG, strength=0.0).generate_noise(latent(1)), plain)


class TestPlainAndGolden:
    def make(self, engine: GoldenNoise, prompts: int, given: dict[str, Any]) -> Any:
        inputs = {"noise": RandomNoise(3), "positive": [[EMBEDS[:prompts], {}]], "engine": engine}
        return call("NPNetRuntimePlainAndGolden", **inputs, latent_image=given, **POLICIES)

    @pytest.mark.parametrize(("prompts", "batch"), [(1, 1), (1, 3), (2, 2)])
    def test_halves(self, engine: GoldenNoise, prompts: int, batch: int) -> None:
        mask = torch.rand(batch, 1, 8, 8)
        noise, doubled = self.make(engine, prompts, latent(batch, noise_mask=mask, other="kept"))
        assert doubled["samples"].shape[0] == len(doubled["noise_mask"]) == 2 * batch
        assert doubled["other"] == "kept"
        plain, golden = noise.generate_noise(doubled).chunk(2)
        assert noise.seed == 3
        assert torch.equal(plain, RandomNoise(3).generate_noise(latent(batch)))
        assert torch.equal(golden, noise_of(engine, EMBEDS[:prompts], 3).generate_noise(latent(batch)))

    def test_batch_index(self, engine: GoldenNoise) -> None:
        noise, doubled = self.make(engine, 1, latent(2, batch_index=[4, 1]))
        assert doubled["batch_index"] == [4, 1, 4, 1]
        plain = noise.generate_noise(doubled)[:2]
        assert torch.equal(plain, RandomNoise(3).generate_noise(latent(2, batch_index=[4, 1])))

    def test_refused(self, engine: GoldenNoise) -> None:
        with pytest.raises(InputError, match="divides the batch of 3.*given 2; set batch_size to 2"):
            self.make(engine, 2, latent(3))
        noise, _ = self.make(engine, 1, latent(1))
        with pytest.raises(InputError, match="expected pairs.*given a batch of 3; connect its latent"):
            noise.generate_noise(latent(3))

    def test_side_by_side(self) -> None:
        images = torch.rand(4, 6, 5, 3)
        joined = call("NPNetRuntimeSideBySide", images=images, gap=2)
        assert joined.shape == (2, 6, 12, 3)
        assert torch.equal(joined[:, :, :5], images[:2])
        assert torch.equal(joined[:, :, 7:], images[2:])
        assert (joined[:, :, 5:7] == 1).all()
        with pytest.raises(InputError, match="given 3 images"):
            call("NPNetRuntimeSideBySide", images=images[:3], gap=0)


class TestErrors:
    """In the words of the graph, and never the untouched noise."""

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
            ([[EMBEDS[..., :8], {}]], "reads embeddings 12 wide, these are 8 wide.*made for the checkpoint"),
        ],
    )
    def test_conditioning(self, engine: GoldenNoise, conditioning: Any, said: str) -> None:
        inputs = {"noise": RandomNoise(0), "positive": conditioning, "engine": engine}
        with pytest.raises(InputError, match=f"^positive: .*{said}"):
            call("NPNetRuntimeGoldenNoise", **inputs, **POLICIES)

    @pytest.mark.parametrize(
        ("embeds", "policy", "said"),
        [
            (
                LONG,
                "error",
                "takes 10 tokens, and the engine reads 5; .*set long_prompts to truncate or average",
            ),
            (LONG[:, :7], "average", "takes chunks of 5 tokens, and the prompt has 7; set long_prompts"),
            (LONG[:, :3], "error", "takes 3 tokens"),
        ],
    )
    def test_long_prompt(self, engine: GoldenNoise, embeds: Tensor, policy: str, said: str) -> None:
        with pytest.raises(InputError, match=said):
            noise_of(engine, embeds, long_prompts=policy)

    @pytest.mark.parametrize(
        ("shape", "said"),
        [
            ((1, 4, 24, 16), "128 x 192 pixels, .*trained for 128 x 128; set other_sizes to transfer"),
            ((1, 4, 3, 16), "128 x 24 pixels are too few .*takes 32 x 32 or more"),
            ((0, 4, 16, 16), "expected a batch of 1 or more"),
            ((1, 4, 3, 16, 16), "expected latents of images"),
        ],
    )
    def test_latents(self, engine: GoldenNoise, shape: tuple[int, ...], said: str) -> None:
        """At the node if they are connected to it, and by the sampler's call if not."""
        given = {"samples": torch.zeros(shape)}
        with pytest.raises(InputError, match=f"latent_image: .*{said}"):
            noise_of(engine, EMBEDS[:1], other_sizes="error", latent_image=given)
        with pytest.raises(InputError, match=f"latent_image: .*{said}"):
            noise_of(engine, EMBEDS[:1], other_sizes="error").generate_noise(given)

    def test_another_kind_of_model(self, engine: GoldenNoise) -> None:
        with pytest.raises(InputError, match="asks for 16 channels, and the engine small makes 4"):
            noise_of(engine, EMBEDS[:1]).generate_noise({"samples": torch.zeros(1, 16, 16, 16)})

    def test_no_noise(self, engine: GoldenNoise) -> None:
        zeros = SimpleNamespace(seed=0, generate_noise=lambda latent: torch.zeros_like(latent["samples"]))
        inputs = {"noise": zeros, "positive": [[EMBEDS[:1], {}]], "engine": engine}
        noise = call("NPNetRuntimeGoldenNoise", **inputs, **POLICIES)
        with pytest.raises(InputError, match="expected random noise, given zeros.*RandomNoise node"):
            noise.generate_noise(latent(1))

    def test_noise_of_another_kind(self, engine: GoldenNoise) -> None:
        odd = SimpleNamespace(seed=0, generate_noise=lambda latent: [0.0])
        inputs = {"noise": odd, "positive": [[EMBEDS[:1], {}]], "engine": engine}
        noise = call("NPNetRuntimeGoldenNoise", **inputs, **POLICIES)
        with pytest.raises(InputError, match="expected a tensor from SimpleNamespace, given list"):
            noise.generate_noise(latent(1))


class TestOldGraphs:
    """Those of earlier versions run on as they are."""

    def test_policies_of_the_engine(self, small_bundle: EngineBundle) -> None:
        path = str(small_bundle.path)
        engine, _ = call("NPNetLoadEngine", engine=path, long_prompts="average", other_sizes="transfer")
        noise = call("NPNetGoldenNoise", noise=RandomNoise(5), positive=[[LONG, {}]], engine=engine)
        assert noise.generate_noise(latent(1, 24, 16)).shape == (1, 4, 24, 16)

    def test_errors(self, small_bundle: EngineBundle, tmp_path: Path) -> None:
        path = str(small_bundle.path)
        engine, _ = call("NPNetLoadEngine", engine=path, long_prompts="error", other_sizes="error")
        noise = call("NPNetGoldenNoise", noise=RandomNoise(5), positive=[[LONG, {}]], engine=engine)
        with pytest.raises(InputError, match="10, 12.*tokens="):
            noise.generate_noise(latent(1))
        with pytest.raises(BundleError):
            comfyui.NODE_CLASS_MAPPINGS["NPNetLoadEngine"]().load(str(tmp_path), "error", "error")


class TestAnySize:
    """An engine of 16 channels, for any size and any prompt, with a pooled embedding: FLUX's latents."""

    POOLED = torch.randn(1, 12, generator=torch.Generator().manual_seed(3))
    CONFIG = dataclasses.replace(ANY_SIZE, second_tokens=0, second_dim=0)

    @pytest.fixture(scope="class")
    def golden(self, tmp_path_factory: pytest.TempPathFactory) -> GoldenNoise:
        weights = WeightsRequest(None, random_seed=0, shapes=self.CONFIG)
        folder = tmp_path_factory.mktemp("any") / "engine"
        return GoldenNoise(
            export(ExportSettings(weights, folder, "any", "torch", device="cpu")), device="cpu"
        )

    def make(self, golden: GoldenNoise, embeds: Tensor, **options: Any) -> ComfyGoldenNoise:
        options = {"pooled_output": self.POOLED} | options
        inputs = {"noise": RandomNoise(5), "positive": [[embeds, options]], "engine": golden}
        return call("NPNetRuntimeGoldenNoise", **inputs, **POLICIES)

    @pytest.mark.parametrize("size", [(12, 10), (9, 31)])
    def test_any_size_and_prompt(self, golden: GoldenNoise, size: tuple[int, int]) -> None:
        embeds, mask = torch.randn(1, 23, 24), torch.ones(1, 23)
        mask[:, 20:] = 0
        samples = {"samples": torch.zeros(2, 16, *size)}
        given = self.make(golden, embeds, attention_mask=mask).generate_noise(samples)
        noise = RandomNoise(5).generate_noise(samples)
        assert torch.equal(given, golden(noise, embeds, mask=mask, pooled=self.POOLED))
        assert not torch.equal(given, self.make(golden, embeds).generate_noise(samples))

    def test_prompts_are_dealt_out(self, golden: GoldenNoise) -> None:
        embeds, pooled = torch.randn(2, 7, 24), torch.randn(2, 12)
        samples = {"samples": torch.zeros(3, 16, 12, 10)}
        given = self.make(golden, embeds, pooled_output=pooled).generate_noise(samples)
        noise, rows = RandomNoise(5).generate_noise(samples), [0, 1, 0]
        assert torch.equal(given, golden(noise, embeds[rows], pooled=pooled[rows]))

    def test_refused(self, golden: GoldenNoise) -> None:
        with pytest.raises(InputError, match="reads a pooled embedding, and this CONDITIONING has none"):
            self.make(golden, torch.randn(1, 7, 24), pooled_output=None)
        with pytest.raises(InputError, match="reads embeddings 24 wide, these are 12 wide"):
            self.make(golden, torch.randn(1, 7, 12))
        made = self.make(golden, torch.randn(1, 7, 24))
        with pytest.raises(InputError, match="takes sides from 32 x 32 to 256 x 256; set another width"):
            made.generate_noise({"samples": torch.zeros(1, 16, 12, 33)})
        with pytest.raises(InputError, match="asks for 4 channels, and the engine any makes 16"):
            made.generate_noise({"samples": torch.zeros(1, 4, 12, 10)})

    def test_long_prompt(self, golden: GoldenNoise) -> None:
        embeds = torch.randn(1, 41, 24)
        samples = {"samples": torch.zeros(1, 16, 12, 10)}
        given = self.make(golden, embeds).generate_noise(samples)
        noise = RandomNoise(5).generate_noise(samples)
        assert torch.equal(given, golden(noise, embeds[:, :40], pooled=self.POOLED))

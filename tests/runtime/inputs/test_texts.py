"""What a call may pass of its prompts, and what the network then reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from npnet_export import ExportSettings, export
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.errors import InputError
from npnet_runtime.inputs.texts import Prompt, random_inputs, texts_of
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import network_from_state
from support.networks import ANY_SIZE, SMALL, noise_and_prompts

LISTS = AnySizeConfig(4, 16, 16, 5, 12, 2, 64, 40, channels=(8, 16), heads=2)
# To compile for any size takes a minute.
ENGINES = ("torch", "onnxruntime", "openvino", pytest.param("aoti", marks=pytest.mark.slow))


def build(folder: Path, config: AnySizeConfig, engine: str) -> EngineBundle:
    weights = WeightsRequest(None, random_seed=0, shapes=config)
    return export(ExportSettings(weights, folder, "any", engine, max_batch=3, device="cpu"))


@pytest.fixture(scope="module", params=ENGINES)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GoldenNoise:
    """An engine that reads all there is to read."""
    return GoldenNoise(build(tmp_path_factory.mktemp("any") / "b", ANY_SIZE, request.param), device="cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> GoldenNoise:
    return GoldenNoise(build(tmp_path_factory.mktemp("plain") / "b", LISTS, "torch"), device="cpu")


def expected(noise: torch.Tensor, prompt: Prompt) -> torch.Tensor:
    with torch.inference_mode():
        network: Any = network_from_state(ANY_SIZE, random_state(ANY_SIZE, 0))
        return network(noise, prompt.embeds, **prompt.others)


class TestGolden:
    """Every engine, at sizes and lengths of prompts that it was not traced with."""

    @pytest.mark.parametrize("size", [(12, 10), (4, 4), (31, 32), (5, 18)])
    @pytest.mark.parametrize("tokens", [1, 7, 40])
    def test_any_size_and_prompt(self, golden: GoldenNoise, size: tuple[int, int], tokens: int) -> None:
        noise, prompt = random_inputs(
            replace(ANY_SIZE, text_tokens=tokens, second_tokens=tokens), range(4), size=size
        )
        given = golden(noise, prompt)
        assert given.shape == noise.shape
        torch.testing.assert_close(given, expected(noise, prompt), atol=2e-5, rtol=0)
        torch.testing.assert_close(golden(golden.prepare(noise), prompt), given, atol=0, rtol=0)

    def test_what_is_left_out(self, golden: GoldenNoise) -> None:
        noise, prompt = random_inputs(ANY_SIZE, range(2))
        given, embeds = prompt.others, prompt.embeds
        named = golden(noise, embeds, **given)
        assert torch.equal(named, golden(noise, prompt))
        whole = replace(prompt, mask=torch.ones(2, 7, dtype=torch.bool), second_mask=torch.ones(2, 3).long())
        without = {name: given[name] for name in ("pooled", "second_embeds")}
        torch.testing.assert_close(golden(noise, embeds, **without), golden(noise, whole), atol=0, rtol=0)

    @pytest.mark.parametrize("prompts", [1, 2])
    def test_prompts_for_several_noises(self, golden: GoldenNoise, prompts: int) -> None:
        noise, _ = random_inputs(ANY_SIZE, range(4))
        _, prompt = random_inputs(ANY_SIZE, range(prompts))
        rows = {
            name: tensor.repeat_interleave(4 // prompts, 0)
            for name, tensor in {"embeds": prompt.embeds, **prompt.others}.items()
        }
        torch.testing.assert_close(golden(noise, prompt), golden(noise, Prompt(**rows)), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtypes(self, golden: GoldenNoise, dtype: torch.dtype) -> None:
        noise, prompt = random_inputs(ANY_SIZE, range(2))
        given = golden(noise.to(dtype), replace(prompt, embeds=prompt.embeds.to(dtype)))
        assert given.dtype == dtype
        torch.testing.assert_close(given.float(), golden(noise, prompt), atol=0.05, rtol=0)

    def test_report_and_warm_up(self, golden: GoldenNoise) -> None:
        golden.warm_up(batches=[1], sizes=[(12, 10), (8, 16)])
        assert "noise of 4 x 4" in golden.report()
        with pytest.raises(InputError, match="expected sides of 4 to 32"):
            golden.warm_up(batches=[1], sizes=[(2, 8)])


class TestLists:
    def test_one_length_each(self, plain: GoldenNoise) -> None:
        noise, _ = random_inputs(LISTS, range(3))
        parts = [torch.randn(n, 12, generator=torch.Generator().manual_seed(n)) for n in (3, 8, 1)]
        given = plain(noise, parts)
        for row, part in enumerate(parts):
            alone = plain(noise[row : row + 1], part[None])
            torch.testing.assert_close(given[row : row + 1], alone, atol=1e-5, rtol=0)

    def test_too_long(self, plain: GoldenNoise) -> None:
        noise, _ = random_inputs(LISTS, [0])
        embeds = torch.randn(1, 41, 12)
        with pytest.raises(
            InputError, match='expected up to 40 tokens, given 41; .*tokens="truncate".*--most-tokens 41'
        ):
            plain(noise, embeds)
        short = plain.using(tokens="truncate")
        torch.testing.assert_close(short(noise, embeds), plain(noise, embeds[:, :40]), atol=0, rtol=0)

    def test_strength_of_a_call(self, plain: GoldenNoise) -> None:
        noise, prompt = random_inputs(LISTS, [0])
        assert torch.equal(plain(noise, prompt, strength=0), noise)
        assert torch.equal(plain(noise, prompt, strength=0.5), plain.using(strength=0.5)(noise, prompt))
        with pytest.raises(InputError, match="from 0 .plain. to 1"):
            plain(noise, prompt, strength=2)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no pooled": ({"pooled": None}, "pooled: expected a tensor, which this network reads, given none"),
    "no second": ({"second_embeds": None, "second_mask": None}, "second_embeds: expected a tensor"),
    "mask of other tokens": ({"mask": torch.ones(2, 6)}, r"mask: expected real numbers of shape \(2, 7\)"),
    "mask of one row": ({"mask": torch.ones(7)}, "mask: expected real numbers"),
    "pooled of another width": ({"pooled": torch.ones(2, 11)}, r"pooled: .*\(2, 12\).*given .*\(2, 11\)"),
    "pooled with NaN": (
        {"pooled": torch.full((2, 12), torch.nan)},
        "pooled: expected finite values, given 24",
    ),
    "complex mask": ({"mask": torch.ones(2, 7, dtype=torch.cfloat)}, "mask: expected real numbers"),
    "mask as a list": ({"mask": [1, 1]}, "mask: expected a torch.Tensor, given list"),
    "second of another width": ({"second_embeds": torch.ones(2, 3, 9)}, r"second_embeds: .*\(2, 3, 8\)"),
    "second without tokens": ({"second_embeds": torch.ones(2, 0, 8)}, "with 1 to 40 tokens"),
    "no tokens": ({"embeds": torch.ones(2, 0, 24)}, "with 1 to 40 tokens"),
    "another width": ({"embeds": torch.ones(2, 7, 23)}, r"expected shape \(batch, 7, 24\)"),
    "no tensor": ({"embeds": "a cat"}, "prompt_embeds: expected a torch.Tensor, given str"),
    "lists of batches": (
        {"embeds": [torch.ones(1, 7, 24)] * 2, "mask": None},
        r"a list of tensors \(tokens, width\)",
    ),
    "a list and a mask": ({"embeds": [torch.ones(7, 24)] * 2}, "and a mask"),
    "lists of two widths": (
        {"embeds": [torch.ones(7, 24), torch.ones(7, 4)], "mask": None},
        "list of shapes",
    ),
}


class TestRefused:
    @pytest.mark.parametrize("name", WRONG)
    def test_prompts(self, golden: GoldenNoise, name: str) -> None:
        change, said = WRONG[name]
        noise, prompt = random_inputs(ANY_SIZE, range(2))
        with pytest.raises(InputError, match=said):
            golden(noise, replace(prompt, **change))

    def test_twice(self, golden: GoldenNoise) -> None:
        noise, prompt = random_inputs(ANY_SIZE, range(2))
        with pytest.raises(InputError, match="pooled: expected within the Prompt"):
            golden(noise, prompt, pooled=prompt.pooled)

    @pytest.mark.parametrize(
        "shape", [(1, 16, 3, 12), (1, 16, 12, 33), (1, 4, 12, 10), (16, 12, 10), (0, 16, 12, 10)]
    )
    def test_noise(self, golden: GoldenNoise, shape: tuple[int, ...]) -> None:
        _, prompt = random_inputs(ANY_SIZE, [0])
        with pytest.raises(InputError, match="noise: expected"):
            golden(torch.randn(shape), prompt)

    def test_what_a_network_does_not_read(self, small_bundles: dict[str, EngineBundle]) -> None:
        golden = GoldenNoise(small_bundles["torch"], device="cpu")
        noise, prompts = noise_and_prompts(SMALL, 1)
        with pytest.raises(
            InputError, match="mask: expected none, as a network of kind npnet reads prompt_embeds only"
        ):
            golden(noise, prompts, mask=torch.ones(1, 5))


def test_order_of_the_graph() -> None:
    noise, prompt = random_inputs(ANY_SIZE, range(2))
    texts = texts_of(prompt, 2, ANY_SIZE, noise.shape[2:], "error")
    shapes = [tuple(text.shape[1:]) for text in texts]
    assert shapes == [(7, 24), (7,), (20, 3, 3), (12,), (3, 8), (3,)]

"""Golden noise in Modular Diffusers, in diffusers' own text-to-image blocks of every family there is here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from npnet_export import ExportSettings, export
from npnet_export.for_pipeline import config_for
from npnet_export.weights import WeightsRequest
from npnet_runtime import GoldenNoise
from npnet_runtime.errors import InputError, PipelineError
from npnet_runtime.integrations.diffusers.latent_space import latent_space_of
from npnet_runtime.networks.any_size_config import config_for_shapes
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.own_text import load_text_encoder
from npnet_runtime.weights import checkpoint
from support.flow_pipelines import FLOWS, OPTIONS, SIZE
from support.pipelines import clip_text, clip_tokenizer
from support.pipelines import sdxl as small_sdxl

BLOCKS: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "sdxl": ("StableDiffusionXLAutoBlocks", small_sdxl, {}),
    "sd3": ("StableDiffusion3AutoBlocks", FLOWS["sd3"], {"max_sequence_length": 24}),
    "flux": ("FluxAutoBlocks", FLOWS["flux-dev"], {"max_sequence_length": 24}),
    "qwen-image": ("QwenImageAutoBlocks", FLOWS["qwen-image"], {"max_sequence_length": 400}),
    "z-image": ("ZImageAutoBlocks", FLOWS["z-image"], {"max_sequence_length": 64}),
}


@pytest.fixture(scope="module", params=BLOCKS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipe(family: str) -> Any:
    return BLOCKS[family][1]()


@pytest.fixture(scope="module")
def engine(family: str, pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> GoldenNoise:
    options = next((OPTIONS[name] for name in FLOWS if FLOWS[name] is BLOCKS[family][1]), {})
    size = {} if family == "sdxl" else {"height": SIZE, "width": SIZE}
    config, reads = config_for(pipe, **size, **options)
    weights = WeightsRequest(None, random_seed=0, shapes=config, reads=reads)
    folder = tmp_path_factory.mktemp("engine") / "e"
    return GoldenNoise(export(ExportSettings(weights, folder, "e", "torch", device="cpu")), device="cpu")


def workflow(family: str) -> Any:
    return getattr(diffusers.modular_pipelines, BLOCKS[family][0])().get_workflow("text2image")


def made_of(blocks: Any, family: str, pipe: Any) -> Callable[..., np.ndarray]:
    modular = blocks.init_pipeline()
    known = modular.blocks.expected_components
    wanted = {spec.name for spec in known}
    parts = {name: part for name, part in pipe.components.items() if part is not None and name in wanted}
    modular.update_components(**parts)
    modular.set_progress_bar_config(disable=True)
    size = {} if family == "sdxl" else {"height": SIZE, "width": SIZE}

    def run(prompt: Any = "a red cat", **options: Any) -> np.ndarray:
        given = {"generator": torch.Generator().manual_seed(7), **size, **BLOCKS[family][2]} | options
        prompt = copy.copy(prompt)
        found = modular(prompt=prompt, num_inference_steps=2, output_type="np", output="images", **given)
        return np.asarray(found)

    run.pipe = modular  # type: ignore[attr-defined]
    return run


def test_golden(family: str, pipe: Any, engine: GoldenNoise) -> None:
    """In blocks before a pipeline is made of them, and in the pipeline; off again, it is plain."""
    plain = made_of(workflow(family), family, pipe)
    expected = plain()
    blocks = workflow(family)
    engine.attach(blocks)
    golden = made_of(blocks, family, pipe)
    images = golden()
    assert np.isfinite(images).all()
    assert not np.array_equal(images, expected)
    assert np.array_equal(golden(), images)
    engine.attach(plain.pipe)
    assert np.array_equal(plain(), images)
    with pytest.raises(PipelineError, match="detach it first"):
        engine.attach(plain.pipe)
    engine.detach(plain.pipe)
    assert np.array_equal(plain(), expected)
    with pytest.raises(PipelineError, match="expected some that this GoldenNoise is attached to"):
        engine.detach(plain.pipe)


def test_all_else_is_as_before(
    family: str, pipe: Any, engine: GoldenNoise, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = GoldenNoise.__call__
    made: list[torch.Tensor] = []

    def unchanged(self: GoldenNoise, noise: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        made.append(original(self, noise, *rest, **more))
        assert not torch.equal(made[-1], noise)
        return noise

    run = made_of(workflow(family), family, pipe)
    several = {} if family == "z-image" else {"num_images_per_prompt": 2}
    two = "a red cat" if family == "qwen-image" else ["a red cat", "two dogs"]  # whose blocks take one only
    for prompt, options in (("a red cat", {}), (two, several)):
        states = []
        with monkeypatch.context() as patch:
            patch.setattr(GoldenNoise, "__call__", unchanged)
            for attached in (False, True):
                if attached:
                    engine.attach(run.pipe)
                generator = torch.Generator().manual_seed(7)
                states.append((run(prompt, generator=generator, **options), generator.get_state()))
            engine.detach(run.pipe)
        (plain, before), (given, after) = states
        assert np.array_equal(given, plain)
        assert torch.equal(before, after)
    assert len(made) == 2


def test_given_latents(family: str, pipe: Any, engine: GoldenNoise) -> None:
    """As the blocks take them: one noise, one image, whoever drew it."""
    run = made_of(workflow(family), family, pipe)
    shape = tuple(engine.bundle.manifest.config.latent_shape)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(7))
    if family in ("flux", "qwen-image"):
        noise = pipe._pack_latents(noise, 1, *shape)
    plain = run(latents=noise)
    engine.attach(run.pipe)
    drawn = run()
    assert np.abs(run(latents=noise) - drawn).max() < 1e-5
    engine.detach(run.pipe)
    engine.attach(run.pipe, given_latents="as-is")
    assert np.array_equal(run(latents=noise), plain)
    assert not np.array_equal(plain, drawn)
    engine.detach(run.pipe)


def test_refuses(family: str, pipe: Any, engine: GoldenNoise) -> None:
    generator = torch.Generator().manual_seed(7)
    state, run = generator.get_state(), made_of(workflow(family), family, pipe)
    engine.attach(run.pipe)
    with pytest.raises(InputError, match="expected sides of"):
        run(generator=generator, height=SIZE * 8, width=SIZE * 8)
    assert torch.equal(generator.get_state(), state)
    with pytest.raises(PipelineError, match=r"with [02-9] .*get_workflow\(.text2image.\)"):
        engine.attach(getattr(diffusers.modular_pipelines, BLOCKS[family][0])())
    engine.detach(run.pipe)


def test_an_engine_of_one_size(golden: GoldenNoise, sdxl: Any, tmp_path: Path) -> None:
    blocks = workflow("sdxl")
    golden.attach(blocks)
    run = made_of(blocks, "sdxl", sdxl)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    embeds = sdxl.encode_prompt(["a red cat"], device="cpu", do_classifier_free_guidance=False)[0]
    plain = made_of(workflow("sdxl"), "sdxl", sdxl)
    assert np.array_equal(run(), plain(latents=golden(noise, embeds)))
    with pytest.raises(InputError, match="noise: expected shape"):
        run(height=48, width=48)


def test_a_text_encoder_of_its_own_and_another_latent_space(family: str, pipe: Any, tmp_path: Path) -> None:
    torch.manual_seed(8)
    clip_text(16, projection=False).save_pretrained(tmp_path / "clip" / "text_encoder")
    clip_tokenizer().save_pretrained(tmp_path / "clip" / "tokenizer")
    own, space = load_text_encoder(str(tmp_path / "clip")).id, latent_space_of(pipe)
    options = next((OPTIONS[name] for name in FLOWS if FLOWS[name] is BLOCKS[family][1]), {})
    size = {} if family == "sdxl" else {"height": SIZE, "width": SIZE}
    noise = config_for(pipe, **size, **options)[0].latent_shape
    config = config_for_shapes(noise, (own.tokens, own.width), channels=(16,))
    made_for = {"latent_space": space.to_dict(), "text_encoder": own.to_dict()}
    checkpoint.write(tmp_path / "w.safetensors", random_state(config, 0), config, made_for)
    weights = WeightsRequest(None, str(tmp_path / "w.safetensors"))
    settings = ExportSettings(weights, tmp_path / "e", "e", "torch", device="cpu", allow_collapse=True)
    engine = GoldenNoise(export(settings), device="cpu")
    run = made_of(workflow(family), family, pipe)
    plain = run()
    engine.attach(run.pipe)
    assert not np.array_equal(run(), plain)
    blocks = workflow(family)
    engine.attach(blocks)
    other = copy.deepcopy(pipe)
    other.vae.register_to_config(shift_factor=0.7)
    with pytest.raises(
        PipelineError, match="expected one of the latent space that the network was trained in"
    ):
        made_of(blocks, family, other)()

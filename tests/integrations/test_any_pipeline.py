"""`golden.attach(pipe)` on pipelines that draw, pack and encode in ways of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.utils.torch_utils import randn_tensor

from npnet_export import ExportSettings, export
from npnet_export.for_pipeline import config_for
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.errors import InputError, PipelineError
from npnet_runtime.integrations.diffusers.checks import drawn_shape, judge
from npnet_runtime.integrations.diffusers.probing import probe
from npnet_runtime.integrations.diffusers.survey import survey, table
from npnet_runtime.networks.any_size_config import AnySizeConfig
from support.flow_pipelines import DRAWN, FLOWS, OPTIONS, SIZE
from support.pipelines import PIPELINES

Run = Callable[..., Any]
PROMPT = "a red cat"
# Of these the draw is packed before the denoiser sees it.
PACKED = ("flux-dev", "flux-schnell", "qwen-image")


def call(pipe: Any, name: str, prompt: Any = PROMPT, **options: Any) -> np.ndarray:
    """Images of one short call."""
    fixed = {"height": SIZE, "width": SIZE, "num_inference_steps": 2, "output_type": "np", **OPTIONS[name]}
    # A copy: Z-Image writes its chat into the caller's list.
    given = {"prompt": copy.copy(options.pop("prompt", prompt)), **options}
    given.setdefault("generator", torch.Generator().manual_seed(7))
    return pipe(**fixed | given).images


@pytest.fixture(scope="module", params=FLOWS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipe(name: str) -> Any:
    return FLOWS[name]()


@pytest.fixture(scope="module")
def bundle(name: str, pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    """An engine with random weights for the pipeline, made of nothing but a look at it."""
    config, reads = config_for(pipe, height=SIZE, width=SIZE, **OPTIONS[name])
    weights = WeightsRequest(None, random_seed=0, shapes=config, reads=reads)
    folder = tmp_path_factory.mktemp("engine") / name
    return export(ExportSettings(weights, folder, name, "torch", max_batch=3, device="cpu"))


@pytest.fixture
def golden(bundle: EngineBundle, pipe: Any) -> Any:
    engine = GoldenNoise(bundle, device="cpu")
    yield engine
    if "_npnet_attachment" in vars(pipe):
        engine.detach(pipe)


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does its work and then gives the noise back."""
    original = GoldenNoise.__call__

    def unchanged(self: GoldenNoise, noise: torch.Tensor, prompt: Any, **options: Any) -> torch.Tensor:
        made = original(self, noise, prompt, **options)
        assert made.shape == noise.shape
        assert not torch.equal(made, noise)
        return noise.clone()

    monkeypatch.setattr(GoldenNoise, "__call__", unchanged)


def test_draws(name: str, pipe: Any) -> None:
    assert judge(type(pipe)).supported
    assert drawn_shape(pipe, SIZE, SIZE) == (1, *DRAWN[name])
    found = probe(pipe, height=SIZE, width=SIZE, **OPTIONS[name])
    assert found.noise == DRAWN[name]
    assert found.reads["embeds"] == "prompt_embeds"


@pytest.mark.parametrize("options", [{}, {"num_images_per_prompt": 2}, {"prompt": ["a cat", "two red dogs"]}])
@pytest.mark.usefixtures("identity")
def test_all_else_is_as_before(name: str, pipe: Any, golden: GoldenNoise, options: dict[str, Any]) -> None:
    plain = call(pipe, name, **options)
    golden.attach(pipe)
    assert np.array_equal(call(pipe, name, **options), plain)
    golden.detach(pipe)
    assert np.array_equal(call(pipe, name, **options), plain)


def test_starts_from_golden_noise(name: str, pipe: Any, golden: GoldenNoise) -> None:
    """As many numbers are drawn, from the generator that the caller gave, and another image comes of them."""
    given, again = (torch.Generator().manual_seed(7) for _ in range(2))
    plain = call(pipe, name, generator=given)
    golden.attach(pipe)
    images = call(pipe, name, generator=again)
    assert torch.equal(given.get_state(), again.get_state())
    assert np.isfinite(images).all()
    assert not np.array_equal(images, plain)
    golden.detach(pipe)
    golden.attach(pipe, strength=0)
    assert np.array_equal(call(pipe, name), plain)


def test_another_size(name: str, pipe: Any, golden: GoldenNoise) -> None:
    options = {"height": SIZE + 32, "width": SIZE}
    plain = call(pipe, name, **options)
    golden.attach(pipe)
    images = call(pipe, name, **options)
    assert images.shape == plain.shape
    assert not np.array_equal(images, plain)
    state = torch.Generator().manual_seed(7)
    before = state.get_state()
    with pytest.raises(InputError, match="expected sides of .* --most-side"):
        call(pipe, name, height=SIZE * 8, width=SIZE, generator=state)
    assert torch.equal(state.get_state(), before)


def test_prompts_of_others_change_it(name: str, pipe: Any, golden: GoldenNoise) -> None:
    """The network reads the positive prompt of each image, and no other."""
    seen: list[torch.Tensor] = []
    golden.attach(pipe)
    original = type(golden).__call__

    class Spy(GoldenNoise):
        def __call__(self, noise: Any, prompt: Any, **options: Any) -> torch.Tensor:
            seen.append(original(self, noise, prompt, **options))
            return seen[-1]

    golden.__class__ = Spy
    both, first, second = ["a red cat", "two blue dogs"], ["a red cat"] * 2, ["two blue dogs"] * 2
    for prompts in (both, first, second):
        call(pipe, name, prompts)
    golden.__class__ = GoldenNoise
    torch.testing.assert_close(seen[0][0], seen[1][0], atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[0][1], seen[2][1], atol=1e-4, rtol=0)
    assert (seen[1] - seen[2]).abs().max() > 1e-3


def test_given_latents(name: str, pipe: Any, golden: GoldenNoise) -> None:
    """As the pipeline takes them or as it draws them: one noise, one image."""

    def rest() -> torch.Generator:
        """As the draw leaves it: some schedulers go on to draw."""
        generator = torch.Generator().manual_seed(7)
        noise.copy_(torch.randn(noise.shape, generator=generator))
        return generator

    noise = torch.empty(1, *DRAWN[name])
    golden.attach(pipe)
    drawn, _ = call(pipe, name), rest()
    if name == "qwen-image":
        noise = noise[:, None]
    assert np.array_equal(call(pipe, name, latents=noise, generator=rest()), drawn)
    if name in PACKED:
        channels, height, width = DRAWN[name]
        packed = pipe._pack_latents(noise, 1, channels, height, width)
        assert packed.dim() == 3
        assert np.array_equal(call(pipe, name, latents=packed, generator=rest()), drawn)
    with pytest.raises((InputError, PipelineError), match="given"):
        call(pipe, name, latents=torch.randn(1, 3, 5))


def test_given_embeddings(name: str, pipe: Any, golden: GoldenNoise) -> None:
    """Encoded by the caller: some pipelines do not encode again, and say by name what they were given."""
    if name not in ("z-image", "flux-dev"):
        pytest.skip("as one of those two")
    golden.attach(pipe)
    images = call(pipe, name)
    with torch.no_grad():
        encoded = pipe.encode_prompt(
            PROMPT,
            device="cpu",
            max_sequence_length=OPTIONS[name]["max_sequence_length"],
            **({"prompt_2": None} if name == "flux-dev" else {}),
        )
    given = {"prompt_embeds": encoded[0]}
    given |= (
        {"pooled_prompt_embeds": encoded[1]} if name == "flux-dev" else {"negative_prompt_embeds": encoded[1]}
    )
    assert np.array_equal(call(pipe, name, None, **given), images)


def test_copies(pipe: Any, name: str, golden: GoldenNoise) -> None:
    golden.attach(pipe)
    images = call(pipe, name)
    other = copy.deepcopy(pipe)
    assert type(other) is type(pipe)
    assert np.array_equal(call(other, name), images)


class TestRefused:
    """Whatever is raised, the pipeline is left as it was."""

    def test_an_engine_of_other_shapes(self, tmp_path: Path) -> None:
        pipe = FLOWS["flux-dev"]()
        config = AnySizeConfig(4, 8, 8, 12, 16, 4, 16, 64, channels=(8, 16), heads=2)
        weights = WeightsRequest(None, random_seed=0, shapes=config)
        bundle = export(ExportSettings(weights, tmp_path / "b", "other", "torch", device="cpu"))
        kind, attributes = type(pipe), dict(vars(pipe))
        said = (
            "noise of 4 channels, given FluxPipeline with 16; and text .* width 16, given .* with 32; .*--for"
        )
        with pytest.raises(PipelineError, match=said):
            GoldenNoise(bundle, device="cpu").attach(pipe)
        assert type(pipe) is kind
        assert vars(pipe) == attributes

    def test_what_a_pipeline_does_not_encode(self, pipe: Any, name: str, bundle: EngineBundle) -> None:
        if name != "flux-dev":
            pytest.skip("one is enough")
        manifest = replace(bundle.manifest, reads={**(bundle.manifest.reads or {}), "embeds": "t5_embeds"})
        golden = GoldenNoise(replace(bundle, manifest=manifest), device="cpu")
        golden.attach(pipe)
        with pytest.raises(
            PipelineError,
            match="by the name of t5_embeds, given NoneType; this call has prompt_embeds, pooled",
        ):
            call(pipe, name)
        golden.detach(pipe)
        assert type(pipe) is FluxPipeline

    def test_draws_twice(self, pipe: Any, name: str, golden: GoldenNoise) -> None:
        """A pipeline whose draw is not the one that was looked for is never left plain in silence."""
        if name != "flux-dev":
            pytest.skip("one is enough")

        class Twice(FluxPipeline):
            def prepare_latents(
                self, batch_size, num_channels_latents, height, width, dtype, device, generator, latents=None
            ) -> Any:
                randn_tensor((1, 16, 8, 8), generator=generator, dtype=dtype)
                noise = randn_tensor((1, 16, 8, 8), generator=generator, dtype=dtype)
                packed = self._pack_latents(noise, 1, 16, 8, 8)
                return packed, self._prepare_latent_image_ids(1, 4, 4, device, dtype)

        twice = Twice(**pipe.components)
        golden.attach(twice)
        with pytest.raises(PipelineError, match="given one whose prepare_latents draws 2 times"):
            call(twice, name)
        golden.detach(twice)
        assert type(twice) is Twice


class Bespoke(FluxPipeline):
    """A pipeline that nobody wrote code for: other names, another order of values, another draw."""

    def encode_prompt(self, words: str, device: Any, most: int) -> Any:  # type: ignore[override]
        embeds, pooled, ids = super().encode_prompt(words, None, device, max_sequence_length=most)
        return {"not": "read"}, pooled, embeds, torch.ones(embeds.shape[:2], dtype=torch.bool), ids

    def prepare_latents(  # type: ignore[override]
        self, dtype: Any, height: int, width: int, num_channels_latents: int, generator: Any, device: Any
    ) -> Any:
        shape = (1, 1, num_channels_latents, height // 8, width // 8)
        return randn_tensor(shape, generator=generator, device=device, dtype=dtype) * 3.0

    @torch.no_grad()
    def __call__(self, prompt: str, size: int, generator: Any) -> Any:  # type: ignore[override]
        notes, pooled, text_states, text_mask, _ = self.encode_prompt(prompt, "cpu", 24)
        del notes, pooled, text_mask
        channels = self.transformer.config.in_channels // 4
        latents = self.prepare_latents(
            torch.float32,
            height=size,
            width=size,
            num_channels_latents=channels,
            generator=generator,
            device="cpu",
        )
        return latents * text_states.mean()


@torch.no_grad()
def test_a_pipeline_that_nobody_wrote_code_for(tmp_path: Path) -> None:
    pipe = Bespoke(**FLOWS["flux-dev"]().components)
    config, reads = config_for(pipe, size=SIZE, generator=None)
    assert config.latent_shape == (16, 8, 8)
    assert reads == {"embeds": "text_states", "mask": "text_mask", "pooled": "pooled"}
    weights = WeightsRequest(None, random_seed=0, shapes=config, reads=reads)
    golden = GoldenNoise(
        export(ExportSettings(weights, tmp_path / "b", "bespoke", "torch", device="cpu")), device="cpu"
    )

    def run() -> torch.Tensor:
        return pipe(PROMPT, SIZE, torch.Generator().manual_seed(3))

    plain = run()
    golden.attach(pipe)
    made = run()
    golden.detach(pipe)
    assert torch.equal(run(), plain)
    assert made.shape == plain.shape == (1, 1, 16, 8, 8)
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    embeds, pooled, _ = FluxPipeline.encode_prompt(pipe, PROMPT, None, "cpu", max_sequence_length=24)
    expected = golden(noise, embeds, pooled=pooled, mask=torch.ones(1, 24, dtype=torch.bool)) * 3.0
    assert torch.equal(made[:, 0], expected * embeds.mean())


class TestSurvey:
    """Every class that diffusers exports: supported, or refused with a reason."""

    def test_all_classes(self) -> None:
        found = {surveyed.name: surveyed.verdict for surveyed in survey()}
        assert len(found) > 200
        assert all(verdict.supported or verdict.reason for verdict in found.values())
        run = {type(make()).__name__ for make in (PIPELINES | FLOWS).values()}
        assert len(run) == 12
        assert all(found[name].supported for name in run)
        for name, verdict in found.items():
            if verdict.supported:
                assert not any(
                    word in name for word in ("Img2Img", "Inpaint", "Video", "Audio", "Upscale")
                ), name

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("StableDiffusionXLImg2ImgPipeline", "changes or continues an image"),
            ("FluxFillPipeline", "changes or continues an image"),
            ("WanPipeline", "makes a video"),
            ("StableCascadeCombinedPipeline", "has no prepare_latents"),
            ("Kandinsky3Pipeline", "its prepare_latents takes shape, scheduler"),
            ("StableAudioPipeline", "does not start from noise alone"),
            ("DDPMPipeline", "takes no prompt"),
            ("DreamLitePipeline", "draws its noise before it encodes its prompt"),
            ("OmniGenPipeline", "takes no embeddings from encode_prompt"),
        ],
    )
    def test_reasons(self, name: str, reason: str) -> None:
        verdict = judge(getattr(diffusers, name))
        assert not verdict.supported
        assert reason in verdict.reason

    def test_the_document_lists_them(self) -> None:
        document = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text()
        listed = document.split("<!-- table -->\n")[1].split("<!-- end of table -->")[0]
        if f"With diffusers {diffusers.__version__}," not in listed:
            pytest.skip("the document lists those of another diffusers")
        assert listed == table(), "python -m npnet_runtime.integrations.diffusers prints it anew"

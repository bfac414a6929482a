"""What `attach` and an attached pipeline refuse: before any denoising, with the pipeline left usable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.errors import InputError, PipelineError
from support.pipelines import UNET, stable_diffusion

Run = Callable[..., np.ndarray]


class TestAttach:
    @pytest.mark.parametrize(
        ("pipe", "said"),
        [
            (None, "given NoneType, which has no encode_prompt"),
            ("stabilityai/sdxl", "given str"),
            (torch.nn.Linear(1, 1), "given Linear"),
            (StableDiffusionXLPipeline, "given the class StableDiffusionXLPipeline"),
        ],
        ids=str,
    )
    def test_no_pipeline(self, golden: GoldenNoise, pipe: Any, said: str) -> None:
        with pytest.raises(PipelineError, match=rf"expected a text-to-image pipeline.*{said}.*golden\(noise"):
            golden.attach(pipe)

    def test_image_to_image(self, golden: GoldenNoise, sdxl: Any) -> None:
        pipe = StableDiffusionXLImg2ImgPipeline.from_pipe(sdxl)
        with pytest.raises(PipelineError, match="starts from noise alone, given StableDiffusionXLImg2Img"):
            golden.attach(pipe)
        assert type(pipe) is StableDiffusionXLImg2ImgPipeline

    def test_packed_latents(self, golden: GoldenNoise) -> None:
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        )
        parts = dict.fromkeys(
            ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
        )
        with pytest.raises(PipelineError, match="noise of 4 channels.*given FluxPipeline with 16"):
            golden.attach(FluxPipeline(**parts, transformer=transformer))

    def test_other_text_width(self, golden: GoldenNoise) -> None:
        pipe = stable_diffusion()
        pipe.unet = UNet2DConditionModel(**UNET | {"cross_attention_dim": 24})
        with pytest.raises(PipelineError, match="text embeddings of width 32.*with 24.*npnet-export --list"):
            golden.attach(pipe)

    def test_inpainting_channels(self, golden: GoldenNoise) -> None:
        pipe = stable_diffusion()
        pipe.unet = UNet2DConditionModel(**UNET, in_channels=9)
        with pytest.raises(PipelineError, match="noise of 4 channels.*with 9"):
            golden.attach(pipe)

    def test_twice(self, golden: GoldenNoise, text_bundle: EngineBundle, sdxl: Any, run: Run) -> None:
        golden.attach(sdxl)
        images = run(sdxl)
        for other in (golden, GoldenNoise(text_bundle, device="cpu")):
            with pytest.raises(PipelineError, match="attached; detach it first"):
                other.attach(sdxl)
        assert np.array_equal(run(sdxl), images)

    def test_unknown_option(self, golden: GoldenNoise, sdxl: Any) -> None:
        with pytest.raises(PipelineError, match="given_latents: expected 'golden' or 'as-is', given 'plain'"):
            golden.attach(sdxl, given_latents="plain")  # type: ignore[arg-type]

    def test_detach_what_is_not_attached(
        self, golden: GoldenNoise, text_bundle: EngineBundle, sdxl: Any
    ) -> None:
        for pipe in (sdxl, None):
            with pytest.raises(PipelineError, match="given one with no golden noise"):
                golden.detach(pipe)
        golden.attach(sdxl)
        with pytest.raises(PipelineError, match="attached to another GoldenNoise"):
            GoldenNoise(text_bundle, device="cpu").detach(sdxl)
        golden.detach(sdxl)


CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "size": ({"height": 48, "width": 32}, InputError, r"noise: expected shape \(batch, 4, 16, 16\)"),
    "latents of another size": ({"latents": torch.randn(1, 4, 16, 8)}, InputError, r"given \(1, 4, 16, 8\)"),
    "too few latents": ({"prompt": ["a", "b"], "latents": torch.randn(1, 4, 16, 16)}, InputError, "expected"),
    "latents with NaN": ({"latents": torch.full((1, 4, 16, 16), torch.nan)}, InputError, "1024 that are NaN"),
    "latents of integers": ({"latents": torch.ones(1, 4, 16, 16).long()}, InputError, "dtype of float16"),
    "latents as a list": ({"latents": [1, 2]}, InputError, "noise: expected a torch.Tensor, given list"),
    # What the plain pipeline refuses, in its own words.
    "number of generators": (
        {"generator": [torch.Generator()] * 3},
        ValueError,
        "list of generators of length 3",
    ),
    "no prompt": ({"prompt": None}, ValueError, "Provide either `prompt` or `prompt_embeds`"),
    "a seed for a generator": ({"generator": 7}, AttributeError, "device"),
}


class TestCall:
    @pytest.mark.parametrize("name", CALLS)
    def test_refused_before_denoising(self, pipe: Any, golden: GoldenNoise, run: Run, name: str) -> None:
        options, error, said = CALLS[name]
        denoised: list[None] = []
        network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
        golden.attach(pipe)
        images = run(pipe)
        network.register_forward_pre_hook(lambda *_: denoised.append(None))
        with pytest.raises(error, match=said):
            run(pipe, **options)
        assert not denoised
        assert np.array_equal(run(pipe), images)

    def test_refused_size_draws_nothing(self, golden: GoldenNoise, sdxl: Any, run: Run) -> None:
        generator = torch.Generator().manual_seed(0)
        state = generator.get_state()
        golden.attach(sdxl)
        with pytest.raises(InputError):
            run(sdxl, height=48, width=48, generator=generator)
        assert torch.equal(generator.get_state(), state)

    def test_prompt_too_long(self, golden: GoldenNoise, sdxl: Any, run: Run) -> None:
        golden.attach(sdxl)
        given = {"prompt_embeds": torch.randn(1, 154, 32), "pooled_prompt_embeds": torch.randn(1, 16)}
        with pytest.raises(InputError, match=r"prompt_embeds: expected shape \(batch, 77, 32\).*154"):
            run(sdxl, None, guidance_scale=1, **given)

    @pytest.mark.parametrize("given", [None, torch.zeros(1, 4, 16, 16)], ids=["drawn", "given"])
    def test_another_device(
        self, golden: GoldenNoise, sdxl: Any, run: Run, monkeypatch: pytest.MonkeyPatch, given: Any
    ) -> None:
        """A pipeline that runs on a GPU, as far as one can without any: it asks for its latents there."""
        golden.attach(sdxl)
        images = run(sdxl)

        def on_gpu(self: Any, prompt: str, generator: torch.Generator, **_: Any) -> None:
            self.encode_prompt(prompt, device="cpu")
            self.prepare_latents(1, 4, 32, 32, torch.float32, torch.device("cuda:1"), generator, given)

        generator = torch.Generator().manual_seed(0)
        state = generator.get_state()
        with monkeypatch.context() as patch:
            patch.setattr(StableDiffusionXLPipeline, "__call__", on_gpu)
            with pytest.raises(PipelineError, match=r"on cuda:1; move it with pipe.to\('cpu'\), or"):
                sdxl("a", generator=generator)
        assert torch.equal(generator.get_state(), state)
        assert np.array_equal(run(sdxl), images)

    def test_failing_callback(self, golden: GoldenNoise, sdxl: Any, run: Run) -> None:
        def fail(*_: object) -> dict[str, Any]:
            raise KeyError("mine")

        golden.attach(sdxl)
        images = run(sdxl)
        with pytest.raises(KeyError, match="mine"):
            run(sdxl, callback_on_step_end=fail)
        assert np.array_equal(run(sdxl), images)

    def test_no_embeddings(
        self, golden: GoldenNoise, sdxl: Any, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A pipeline that draws its noise before it encodes its prompt."""
        golden.attach(sdxl)
        monkeypatch.setattr(
            StableDiffusionXLPipeline,
            "__call__",
            lambda self, prompt, **_: self.prepare_latents(1, 4, 32, 32, torch.float32, "cpu", None),
        )
        with pytest.raises(PipelineError, match="expected prompt embeddings from encode_prompt before"):
            sdxl("a")


def test_pipeline_made_by_the_class_of_an_attached_one(golden: GoldenNoise, sdxl: Any) -> None:
    """`from_pipe` of an attached pipeline's class gives a plain one."""
    golden.attach(sdxl)
    again = type(sdxl).from_pipe(sdxl)
    golden.detach(sdxl)
    calls = [
        pipe("a cat", generator=torch.manual_seed(0), num_inference_steps=1, output_type="np").images
        for pipe in (again, sdxl)
    ]
    assert np.array_equal(*calls)

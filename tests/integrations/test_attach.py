"""`golden.attach(pipe)` on real pipelines: what changes, and all that does not."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)

from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.integrations.diffusers.ahead import Ahead
from support.pipelines import PIPELINES, SCALED_LINEAR
from support.pipelines import sdxl as make_sdxl

Run = Callable[..., np.ndarray]
NOISE = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))


def embeds(pipe: Any, prompts: list[str]) -> torch.Tensor:
    return pipe.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def drawn(count: int) -> tuple[torch.Tensor, torch.Generator]:
    """The noise that a plain call draws first, and the generator as it leaves it."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, 4, 16, 16, generator=generator), generator


class TestWhatChanges:
    """Attached, a call is the plain call with `latents=golden(noise, prompt_embeds)`, to the last bit."""

    def test_starts_from_golden_noise(self, pipe: Any, golden: GoldenNoise, run: Run) -> None:
        noise, rest = drawn(1)
        made = golden(noise, embeds(pipe, ["a red cat"]))
        expected = run(pipe, latents=made, generator=rest)
        plain = run(pipe)
        golden.attach(pipe)
        given = run(pipe)
        assert np.array_equal(given, expected)
        assert not np.array_equal(given, plain)

    def test_a_prompt_each(self, pipe: Any, golden: GoldenNoise, run: Run) -> None:
        prompts = ["a red cat", "two dogs"]
        expected = run(pipe, prompts, latents=golden(NOISE, embeds(pipe, prompts)))
        golden.attach(pipe)
        assert np.array_equal(run(pipe, prompts, latents=NOISE), expected)

    def test_images_per_prompt(self, pipe: Any, golden: GoldenNoise, run: Run) -> None:
        """Prompt a, a, b, b: the order of diffusers."""
        noise, rest = drawn(4)
        prompts = ["a red cat", "two dogs"]
        made = golden(noise, embeds(pipe, prompts))
        expected = run(pipe, prompts, latents=made, num_images_per_prompt=2, generator=rest)
        golden.attach(pipe)
        assert np.array_equal(run(pipe, prompts, num_images_per_prompt=2), expected)

    def test_reads_the_positive_prompt_only(self, pipe: Any, golden: GoldenNoise, run: Run) -> None:
        noise, rest = drawn(1)
        made = golden(noise, embeds(pipe, ["a red cat"]))
        expected = run(pipe, latents=made, negative_prompt="a dog", guidance_scale=7.0, generator=rest)
        golden.attach(pipe)
        assert np.array_equal(run(pipe, negative_prompt="a dog", guidance_scale=7.0), expected)

    def test_latents_as_is(self, pipe: Any, golden: GoldenNoise, run: Run) -> None:
        plain = run(pipe, latents=NOISE[:1])
        golden.attach(pipe, given_latents="as-is")
        assert np.array_equal(run(pipe, latents=NOISE[:1]), plain)

    def test_strength(self, pipe: Any, golden: GoldenNoise, run: Run) -> None:
        plain = run(pipe)
        golden.attach(pipe, strength=0)
        assert np.array_equal(run(pipe), plain)
        golden.detach(pipe)  # the engine it was attached with, whatever the strength
        golden.attach(pipe)
        whole = run(pipe)
        golden.detach(pipe)
        golden.attach(pipe, strength=0.5)
        half = run(pipe)
        assert not np.array_equal(half, plain)
        assert not np.array_equal(half, whole)

    def test_given_latents_are_not_changed(self, golden: GoldenNoise, sdxl: Any, run: Run) -> None:
        golden.attach(sdxl)
        given = NOISE.clone()
        run(sdxl, ["a", "b"], latents=given)
        assert torch.equal(given, NOISE)


class TestPolicies:
    def test_other_size(self, text_bundle: EngineBundle, sdxl: Any, run: Run) -> None:
        golden = GoldenNoise(text_bundle, device="cpu", resolution="transfer")
        generator = torch.Generator().manual_seed(7)
        noise = torch.randn(1, 4, 24, 20, generator=generator)
        options = {"height": 48, "width": 40}
        expected = run(
            sdxl, latents=golden(noise, embeds(sdxl, ["a red cat"])), generator=generator, **options
        )
        golden.attach(sdxl)
        assert np.array_equal(run(sdxl, **options), expected)

    def test_other_length(self, text_bundle: EngineBundle, sdxl: Any, run: Run) -> None:
        golden = GoldenNoise(text_bundle, device="cpu", tokens="average")
        long = torch.randn(1, 154, 32, generator=torch.Generator().manual_seed(0))
        options = {"prompt_embeds": long, "pooled_prompt_embeds": torch.ones(1, 16), "guidance_scale": 1.0}
        noise, rest = drawn(1)
        expected = run(sdxl, None, latents=golden(noise, long), generator=rest, **options)
        golden.attach(sdxl)
        assert np.array_equal(run(sdxl, None, **options), expected)


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "one step": {"num_inference_steps": 1},
    "no guidance": {"guidance_scale": 1.0},
    "negative prompt": {"negative_prompt": "blurry"},
    "prompt list": {"prompt": ["a red cat", "two dogs", "three birds"]},
    "images per prompt": {"prompt": ["a red cat", "two dogs"], "num_images_per_prompt": 2},
    "long prompt": {"prompt": "red " * 200},
    "latents": {"latents": NOISE[:1]},
    "numbers": {"output_type": "latent"},
    "tuple": {"return_dict": True, "output_type": "pt"},
}


@pytest.mark.usefixtures("identity")
class TestAllElseIsAsBefore:
    """An engine that gives the noise back: every bit of every image is that of the plain pipeline."""

    @pytest.mark.parametrize("name", OPTIONS)
    def test_options(self, pipe: Any, golden: GoldenNoise, run: Run, name: str) -> None:
        plain = run(pipe, **OPTIONS[name])
        golden.attach(pipe)
        assert np.array_equal(run(pipe, **OPTIONS[name]), plain)
        golden.detach(pipe)
        assert np.array_equal(run(pipe, **OPTIONS[name]), plain)

    @pytest.mark.parametrize(
        "scheduler",
        [
            EulerDiscreteScheduler(**SCALED_LINEAR, timestep_spacing="trailing"),  # Lightning
            EulerAncestralDiscreteScheduler(**SCALED_LINEAR, timestep_spacing="trailing"),  # Turbo
            DDIMScheduler(**SCALED_LINEAR),
            DPMSolverMultistepScheduler(**SCALED_LINEAR, use_karras_sigmas=True),
            LCMScheduler(**SCALED_LINEAR),
        ],
        ids=lambda scheduler: type(scheduler).__name__,
    )
    def test_schedulers(self, golden: GoldenNoise, sdxl: Any, run: Run, scheduler: Any) -> None:
        """Those that draw noise while they sample find the generator as it was."""
        sdxl.scheduler = scheduler
        plain = run(sdxl, num_inference_steps=4, eta=0.5)
        golden.attach(sdxl)
        assert np.array_equal(run(sdxl, num_inference_steps=4, eta=0.5), plain)

    @pytest.mark.parametrize("kind", ["one", "list", "shared", "global"])
    def test_random_state(self, pipe: Any, golden: GoldenNoise, run: Run, kind: str) -> None:
        def call() -> tuple[np.ndarray, list[torch.Tensor]]:
            torch.manual_seed(11)
            first, second = generators(1, 2)
            given = {"one": first, "list": [first, second], "shared": [first, first], "global": None}[kind]
            images = run(pipe, ["a", "b"], generator=given)
            return images, [first.get_state(), second.get_state(), torch.get_rng_state()]

        images, states = call()
        golden.attach(pipe)
        again, states_again = call()
        assert np.array_equal(again, images)
        assert all(torch.equal(a, b) for a, b in zip(states, states_again, strict=True))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, pipe: Any, golden: GoldenNoise, run: Run, dtype: torch.dtype) -> None:
        pipe.to(dtype)
        plain = run(pipe)
        golden.attach(pipe)
        assert np.array_equal(run(pipe), plain, equal_nan=True)

    def test_prompt_embeds(self, golden: GoldenNoise, sdxl: Any, run: Run) -> None:
        positive, negative, pooled, negative_pooled = sdxl.encode_prompt(["a red cat", "b"], device="cpu")
        given = {
            "prompt": None,
            "prompt_embeds": positive,
            "negative_prompt_embeds": negative,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": negative_pooled,
        }
        plain = run(sdxl, **given)
        golden.attach(sdxl)
        assert np.array_equal(run(sdxl, **given), plain)

    def test_arguments_by_position(self, golden: GoldenNoise, sdxl: Any) -> None:
        def call() -> torch.Tensor:
            torch.manual_seed(0)
            return sdxl("a cat", "a dog", 32, 32, 2, output_type="pt").images

        plain = call()
        golden.attach(sdxl)
        assert torch.equal(call(), plain)

    def test_callbacks(self, pipe: Any, golden: GoldenNoise, run: Run) -> None:
        def change(pipe: Any, step: int, time: int, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append((type(pipe).__name__, step, sorted(tensors), tensors["latents"].clone()))
            return {"latents": tensors["latents"] * 0.5}

        seen: list[Any] = []
        plain, calls = run(pipe, callback_on_step_end=change), seen
        golden.attach(pipe)
        seen = []
        assert np.array_equal(run(pipe, callback_on_step_end=change), plain)
        assert [call[:3] for call in seen] == [call[:3] for call in calls]
        assert all(torch.equal(a[3], b[3]) for a, b in zip(seen, calls, strict=True))

    def test_a_pipeline_within_a_callback(self, golden: GoldenNoise, sdxl: Any, run: Run) -> None:
        inner = PIPELINES["stable-diffusion"]()

        def nested(pipe: Any, step: int, time: int, tensors: dict[str, Any]) -> dict[str, Any]:
            images.append(run(inner, "two dogs"))
            return {}

        images: list[np.ndarray] = []
        plain, alone = run(sdxl), run(inner, "two dogs")
        golden.attach(sdxl)
        golden.attach(inner)
        assert np.array_equal(run(sdxl, callback_on_step_end=nested), plain)
        assert all(np.array_equal(image, alone) for image in images)

    @pytest.mark.parametrize("offload", [cpu_offload, cpu_offload_with_hook])
    def test_offload(self, pipe: Any, golden: GoldenNoise, run: Run, offload: Callable[..., Any]) -> None:
        """The hooks that `enable_sequential_cpu_offload` and `enable_model_cpu_offload` set."""
        if offload is cpu_offload and "HunyuanDiT" in type(pipe).__name__:
            pytest.skip("diffusers: the transformer has a parameter outside of its modules")
        plain = run(pipe)
        golden.attach(pipe)
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                offload(module, execution_device=torch.device("cpu"))
        assert offload is not cpu_offload or pipe.text_encoder.device.type == "meta"
        assert np.array_equal(run(pipe), plain)

    def test_compiled_modules(self, golden: GoldenNoise, sdxl: Any, run: Run) -> None:
        plain = run(sdxl)
        sdxl.unet = torch.compile(sdxl.unet, backend="eager")
        golden.attach(sdxl)
        assert np.array_equal(run(sdxl), plain)

    def test_weights_stored_in_eight_bits(self, golden: GoldenNoise, pipe: Any, run: Run) -> None:
        """They are cast where they are used: the noise has the dtype of that."""
        denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
        denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        assert any(weight.dtype == torch.float8_e4m3fn for weight in denoiser.parameters())
        plain = run(pipe)
        golden.attach(pipe)
        assert np.array_equal(run(pipe), plain)

    @pytest.mark.parametrize("also", [(), ("text_encoder", "text_encoder_2")])
    def test_a_denoiser_without_parameters(
        self, golden: GoldenNoise, sdxl: Any, run: Run, also: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As one by TensorRT, or with weights of a kind of its own."""
        plain = run(sdxl)
        golden.attach(sdxl)
        for name in ("unet", *also):
            monkeypatch.setattr(getattr(sdxl, name), "parameters", lambda recurse=True: iter(()))
            monkeypatch.setattr(type(getattr(sdxl, name)), "dtype", torch.float32)
            monkeypatch.setattr(type(getattr(sdxl, name)), "device", torch.device("cpu"))
        assert np.array_equal(run(sdxl), plain)

    def test_methods_alone(self, golden: GoldenNoise, sdxl: Any) -> None:
        """Outside of a call nothing is golden."""

        def parts() -> list[torch.Tensor]:
            drawn = sdxl.prepare_latents(1, 4, 32, 32, torch.float32, torch.device("cpu"), *generators(0))
            return [embeds(sdxl, ["a"]), drawn]

        plain = parts()
        golden.attach(sdxl)
        assert all(torch.equal(a, b) for a, b in zip(parts(), plain, strict=True))

    def test_is_the_same_object_to_others(self, golden: GoldenNoise, sdxl: Any, tmp_path: Path) -> None:
        signature, text = inspect.signature(sdxl.__call__), repr(sdxl)
        sdxl.save_pretrained(tmp_path / "plain")
        golden.attach(sdxl)
        sdxl.save_pretrained(tmp_path / "attached")
        assert inspect.signature(sdxl.__call__) == signature
        assert repr(sdxl) == text
        assert isinstance(sdxl, StableDiffusionXLPipeline)
        names = [path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*.json")]
        assert Path("model_index.json") in names
        for name in names:
            assert (tmp_path / "attached" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
        assert type(StableDiffusionXLImg2ImgPipeline.from_pipe(sdxl)) is StableDiffusionXLImg2ImgPipeline


class TestDetach:
    def test_restores_exactly(self, pipe: Any, golden: GoldenNoise, run: Run) -> None:
        plain, kind, attributes = run(pipe), type(pipe), dict(vars(pipe))
        golden.attach(pipe)
        run(pipe)
        golden.detach(pipe)
        assert type(pipe) is kind
        assert set(vars(pipe)) == set(attributes)
        assert np.array_equal(run(pipe), plain)

    def test_other_pipelines_stay_as_they_are(self, golden: GoldenNoise, sdxl: Any, run: Run) -> None:
        methods = {name: vars(StableDiffusionXLPipeline)[name] for name in ("__call__", "prepare_latents")}
        other = make_sdxl()
        plain = run(other)
        golden.attach(sdxl)
        assert np.array_equal(run(other), plain)
        assert all(vars(StableDiffusionXLPipeline)[name] is method for name, method in methods.items())

    def test_two_engines_side_by_side(self, golden: GoldenNoise, text_bundle: EngineBundle, run: Run) -> None:
        first, second = make_sdxl(), make_sdxl()
        other = GoldenNoise(text_bundle, device="cpu")
        golden.attach(first)
        other.attach(second)
        golden.detach(first)
        assert not np.array_equal(run(first), run(second))

    def test_copies(self, golden: GoldenNoise, sdxl: Any, run: Run) -> None:
        golden.attach(sdxl)
        copied, deep = copy.copy(sdxl), copy.deepcopy(sdxl)
        images = run(sdxl)
        golden.detach(sdxl)
        assert np.array_equal(run(copied), images)
        assert np.array_equal(run(deep), images)

    def test_pickled(
        self, text_bundle: EngineBundle, sdxl: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With its engine, found where it was opened, whatever folder the process is in by then."""
        monkeypatch.chdir(text_bundle.path.parent)
        golden = GoldenNoise(text_bundle.path.name, device="cpu")
        golden.attach(sdxl)
        monkeypatch.chdir(tmp_path)
        copied = pickle.loads(pickle.dumps(sdxl))  # before a call: transformers hooks what cannot be pickled
        assert type(copied) is type(sdxl)
        assert np.array_equal(run(copied), run(sdxl))


class TestAhead:
    """The spectral half runs beside the text encoders when, and only when, the noise is foreseen."""

    @pytest.fixture
    def used(self, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
        results: list[bool] = []
        original = Ahead.result
        monkeypatch.setattr(Ahead, "result", lambda self: results.append(True) or original(self))
        return results

    @pytest.mark.parametrize("given", ["generator", "list", "global", "latents", "embeds", "bf16"])
    def test_is_used(self, pipe: Any, golden: GoldenNoise, run: Run, used: list[bool], given: str) -> None:
        golden.attach(pipe)
        if given == "bf16":
            pipe.to(torch.bfloat16)
        if given == "embeds" and isinstance(pipe, StableDiffusionXLPipeline):
            positive, _, pooled, _ = pipe.encode_prompt(["a", "b"], device="cpu")
            run(pipe, None, prompt_embeds=positive, pooled_prompt_embeds=pooled, guidance_scale=1)
        else:
            options: dict[str, Any] = {
                "list": {"generator": generators(1, 2)},
                "global": {"generator": None},
                "latents": {"latents": NOISE},
            }.get(given, {})
            run(pipe, ["a", "b"], **options)
        assert used == [True]

    def test_starts_before_the_text_encoders(
        self, golden: GoldenNoise, sdxl: Any, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun = threading.Event()
        prepare = golden.prepare
        monkeypatch.setattr(golden, "prepare", lambda noise: begun.set() or prepare(noise))
        golden.attach(sdxl)
        waited: list[bool] = []
        sdxl.text_encoder.register_forward_pre_hook(lambda *_: waited.append(begun.wait(10)))
        run(sdxl)
        assert waited[0]

    def test_is_dropped_when_other_noise_is_drawn(
        self, golden: GoldenNoise, sdxl: Any, run: Run, used: list[bool]
    ) -> None:
        """A text encoder that takes from the caller's generator."""
        generator = torch.Generator()

        def take(*_: object) -> None:
            torch.rand(1, generator=generator)

        hook = sdxl.text_encoder.register_forward_pre_hook(take)

        def call() -> np.ndarray:
            return run(sdxl, generator=generator.manual_seed(7))

        golden.attach(sdxl)
        images = call()
        assert used == []
        hook.remove()
        assert not np.array_equal(call(), images)
        assert used == [True]


class TestManners:
    def test_hundred_calls_leave_nothing(self, golden: GoldenNoise, sdxl: Any, run: Run) -> None:
        golden.attach(sdxl)
        run(sdxl, num_inference_steps=1)
        gc.collect()
        tensors, threads = live_tensors(), threading.active_count()
        for _ in range(100):
            run(sdxl, num_inference_steps=1, output_type="latent")
        gc.collect()
        assert live_tensors() <= tensors
        assert threading.active_count() <= threads

    def test_hundred_attachments_leave_nothing(self, golden: GoldenNoise, sdxl: Any, run: Run) -> None:
        def once() -> None:
            golden.attach(sdxl)
            run(sdxl, num_inference_steps=1, output_type="latent")
            golden.detach(sdxl)

        once()
        gc.collect()
        classes, threads = len(StableDiffusionXLPipeline.__subclasses__()), threading.active_count()
        for _ in range(100):
            once()
        gc.collect()
        assert len(StableDiffusionXLPipeline.__subclasses__()) == classes
        assert threading.active_count() <= threads + 1

    def test_threads(self, golden: GoldenNoise, run: Run) -> None:
        """One engine, a pipeline and a seed for each thread."""
        pipes = [make_sdxl() for _ in range(4)]
        for pipe in pipes:
            golden.attach(pipe)
        expected = [run(pipe, f"prompt {'abcd'[i]}", seed=i) for i, pipe in enumerate(pipes)]
        given: dict[int, list[np.ndarray]] = {i: [] for i in range(4)}

        def work(i: int) -> None:
            for _ in range(5):
                given[i].append(run(pipes[i], f"prompt {'abcd'[i]}", seed=i))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(len(images) == 5 for images in given.values())
        assert all(np.array_equal(image, expected[i]) for i, images in given.items() for image in images)


def live_tensors() -> int:
    return sum(isinstance(item, torch.Tensor) for item in gc.get_objects())

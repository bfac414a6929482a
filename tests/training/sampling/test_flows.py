"""Pipelines of the transformer families as their own denoisers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npnet_training.errors import ModelError, SettingsError
from npnet_training.sampling import (
    Conditioning,
    Denoiser,
    RedenoiseSettings,
    SampleSettings,
    draw_noise,
    redenoise,
    render,
    sample_images,
)
from support.flow_pipelines import DRAWN, FLOWS, OPTIONS, SIZE

PROMPTS = ["a red cup", "two cats and a dog, on a wooden table"]
OF_GUIDANCE = ("guidance_scale", "negative_prompt", "true_cfg_scale")
GUIDANCE = {
    "flux-dev": "embedded",
    "sana-sprint": "embedded",
}
FIXED = {name: {k: v for k, v in OPTIONS[name].items() if k not in OF_GUIDANCE} for name in FLOWS}


@pytest.fixture(scope="module", params=list(FLOWS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def denoiser(name: str) -> Denoiser:
    return Denoiser(FLOWS[name](), (SIZE, SIZE), FIXED[name])


def pixels(images: Any) -> np.ndarray:
    return np.stack([np.array(image) for image in images]).astype(int)


def guided(denoiser: Denoiser, scale: float) -> dict[str, Any]:
    negative = {"negative_prompt": ""} if denoiser.guidance.argument == "true_cfg_scale" else {}
    return {str(denoiser.guidance.argument): scale, **negative}


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_images_are_those_of_a_plain_call(name: str, denoiser: Denoiser, scale: float) -> None:
    """Encodings, packing, schedule, guidance and decoding are the pipeline's own."""
    assert denoiser.latent_shape == DRAWN[name]
    steps = 1 if name == "sana-sprint" else 2  # which adds noise in later steps
    scales = guided(denoiser, denoiser.guidance.arguments(scale)[str(denoiser.guidance.argument)])
    arguments = denoiser.of_steps(steps) | {"height": SIZE, "width": SIZE} | scales | FIXED[name]
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    # a list of its own: Z-Image writes its template into it
    expected = denoiser.pipe(prompt=[*PROMPTS], generator=generators, **arguments).images
    drawn = [torch.randn((1, *DRAWN[name]), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    settings = SampleSettings(steps=steps, guidance=scale)
    found = sample_images(denoiser, PROMPTS, torch.cat(drawn), settings)
    assert np.abs(pixels(found) - pixels(expected)).max() <= 1
    assert pixels(found).std() > 1


def test_the_pipeline_stays_as_it_was(denoiser: Denoiser) -> None:
    pipe = denoiser.pipe
    kind, before = type(pipe), dict(pipe.__dict__)
    sample_images(denoiser, PROMPTS[:1], draw_noise([0], denoiser.latent_shape), SampleSettings(steps=1))
    assert type(pipe) is kind
    assert pipe.__dict__ == before


def test_guidance(name: str, denoiser: Denoiser) -> None:
    assert denoiser.guidance.kind == GUIDANCE.get(name, "mixed")
    conditioning = denoiser.encode(PROMPTS)
    assert (conditioning.negative is not None) == (denoiser.guidance.kind == "mixed")
    if name == "sana-sprint":
        with pytest.raises(ModelError, match="trigflow"):
            denoiser.timesteps(2)
        return
    noise, step = draw_noise([0, 1], denoiser.latent_shape), denoiser.timesteps(4)[1]
    with torch.no_grad():
        low, high = (denoiser.predict(noise, step, conditioning, scale) for scale in (1.0, 5.0))
    assert low.shape == noise.shape
    assert (low - high).abs().max() > 1e-5
    if denoiser.guidance.kind == "mixed":
        with pytest.raises(SettingsError, match="expected 1, which is none, or more"):
            denoiser.predict(noise, step, conditioning, 0.5)


def test_prompts_encoded_alone_are_those_of_a_batch(name: str, denoiser: Denoiser) -> None:
    alone = Conditioning.cat([denoiser.encode([prompt]) for prompt in PROMPTS])
    together = denoiser.encode(PROMPTS)
    noise = draw_noise([0, 1], denoiser.latent_shape)
    settings = SampleSettings(steps=1, guidance=2.0)
    images = [pixels(sample_images(denoiser, given, noise, settings)) for given in (alone, together)]
    assert np.abs(images[0] - images[1]).max() <= 1
    assert len(together[[1]]) == 1
    assert len(together[:1].to("cpu")) == 1


@pytest.mark.parametrize("name", ["sd3", "flux-dev", "qwen-image", "z-image", "lumina2", "flux2-klein"])
@pytest.mark.parametrize("size", [(SIZE, SIZE), (SIZE, 2 * SIZE)])
def test_redenoising_a_flow_is_the_closed_form(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the velocity is the latents less a constant, so that it can be followed by hand."""
    denoiser = Denoiser(FLOWS[name](), size, FIXED[name])
    conditioning = denoiser.encode(PROMPTS)
    noise = draw_noise([3, 4], denoiser.latent_shape)
    assert noise.shape[-1] == noise.shape[-2] * size[1] // size[0]
    network = denoiser.network
    negated = name in ("z-image", "lumina2")  # their networks give what is negated before the scheduler

    def linear(hidden_states: Any, *_: Any, guidance: Tensor | None = None, **__: Any) -> tuple[Any]:
        sign = -1.0 if negated else 1.0
        if isinstance(hidden_states, list):  # Z-Image: one for each image, the negative ones last
            return ([sign * (0.5 * part - 0.1) for part in hidden_states],)
        shift = 0.0 if guidance is None else guidance.reshape(-1, 1, 1) / 10
        return (sign * (0.5 * hidden_states - 0.1 + shift),)

    monkeypatch.setattr(network, "forward", linear)
    first, second = (float(step) / 1000 for step in denoiser.timesteps(4)[:2])
    golden = redenoise(denoiser, noise, conditioning, RedenoiseSettings(steps=4, guidance=3.0))
    embedded = denoiser.guidance.kind == "embedded"
    high, low = (0.3, 0.1) if embedded else (0.0, 0.0)
    velocity = 0.5 * noise - 0.1 + high
    after = noise + (second - first) * velocity
    expected = noise + (first - second) * (0.5 * after - 0.1 + low - velocity)
    if name not in ("qwen-image", "lumina2"):  # which rescale what they mix
        torch.testing.assert_close(golden, expected, atol=2e-5, rtol=1e-4)
    assert (golden - noise).abs().max() > 1e-3


def test_timesteps_are_those_of_a_call(name: str, denoiser: Denoiser) -> None:
    if name in ("sana-sprint", "pixart-sigma"):
        return  # no flow
    seen: list[float] = []
    own = denoiser.pipe.scheduler
    step = type(own).step

    def spy(self: Any, output: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(float(timestep))
        return step(self, output, timestep, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(own), "step", spy)
        sizes = {"height": SIZE, "width": 2 * SIZE}
        denoiser.pipe(prompt=PROMPTS[0], num_inference_steps=3, output_type="latent", **sizes, **FIXED[name])
    channels, height, width = denoiser.latent_shape
    assert seen == pytest.approx(denoiser.timesteps(3, shape=(channels, height, 2 * width)).tolist())


def test_gradients_reach_the_noise_and_the_prompts(name: str, denoiser: Denoiser) -> None:
    conditioning = denoiser.encode(PROMPTS)
    noise = draw_noise([0, 1], denoiser.latent_shape).requires_grad_()
    images = render(denoiser, noise, conditioning, 2, None, checkpointing=True)
    assert images.shape == (2, 3, SIZE, SIZE)
    assert 0 <= images.min() <= images.max() <= 1
    images.square().mean().backward()
    assert noise.grad is not None
    assert torch.isfinite(noise.grad).all()
    assert (noise.grad.flatten(1).abs().amax(1) > 0).all()


def test_noise_of_another_shape(denoiser: Denoiser) -> None:
    channels, height, width = denoiser.latent_shape
    noise = draw_noise([0], (channels + 1, height, width))
    with pytest.raises(ModelError, match="expected noise of shape"):
        sample_images(denoiser, PROMPTS[:1], noise, SampleSettings(steps=1))

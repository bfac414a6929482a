"""Images by the pipeline's call, and latents by the loop that gradients run through."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from npnet_training.errors import SettingsError
from npnet_training.sampling import (
    Denoiser,
    SampleSettings,
    draw_noise,
    render,
    sample_images,
    sample_latents,
)

PROMPTS = ["a red cup", "two cats"]
DDIM = SampleSettings(steps=3, guidance=4.0, scheduler="ddim")


def pixels(images: list) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(image)) for image in images]).float()


def test_both_ways_give_the_same_images(any_denoiser: Denoiser) -> None:
    """Checks scaling of the noise, arguments of the call, guidance and levels, all at once."""
    pipe = any_denoiser.pipe
    own = pipe.scheduler
    noise = draw_noise([0, 1], any_denoiser.latent_shape)
    by_pipe = pixels(sample_images(any_denoiser, PROMPTS, noise, DDIM))
    assert pipe.scheduler is own
    with torch.no_grad():
        latents = sample_latents(any_denoiser, noise, any_denoiser.encode(PROMPTS), 3, 4.0)
        by_loop = (any_denoiser.decode(latents) / 2 + 0.5).mul(255).round().permute(0, 2, 3, 1)
    assert (by_pipe - by_loop).abs().max() <= 1


def test_an_image_depends_on_its_noise_prompt_and_seed_alone(any_denoiser: Denoiser) -> None:
    """With the model's own scheduler, of which Hunyuan-DiT's adds noise in every step."""
    noise, settings = draw_noise([0, 1], any_denoiser.latent_shape), SampleSettings(steps=2)
    conditioning = any_denoiser.encode(PROMPTS)
    together = pixels(sample_images(any_denoiser, conditioning, noise, settings, seeds=[5, 6]))
    alone = pixels(sample_images(any_denoiser, PROMPTS[1:], noise[1:], settings, seeds=[6]))
    assert (together[1] - alone[0]).abs().max() <= 1
    assert together[0].std() > 1


def test_without_guidance(any_denoiser: Denoiser) -> None:
    noise = draw_noise([0], any_denoiser.latent_shape)
    settings = SampleSettings(steps=1, guidance=1.0)
    assert len(sample_images(any_denoiser, PROMPTS[:1], noise, settings)) == 1


def test_step_noise_is_not_the_source_noise(any_denoiser: Denoiser) -> None:
    noise = draw_noise([3], any_denoiser.latent_shape)
    drawn = []
    original = torch.randn

    def spy(*args, **kwargs):
        drawn.append(original(*args, **kwargs))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", spy)
        sample_images(any_denoiser, PROMPTS[:1], noise, SampleSettings(steps=2), seeds=[3])
    assert all(not torch.equal(one, noise) for one in drawn)


def test_gradients_of_images(any_denoiser: Denoiser) -> None:
    conditioning = any_denoiser.encode(PROMPTS)
    with torch.no_grad():
        value = render(any_denoiser, draw_noise([0, 1], any_denoiser.latent_shape), conditioning, 3, 2.0)
    assert value.shape[:2] == (2, 3)
    gradients = {}
    for name, options in {
        "plain": {},
        "checkpointed": {"checkpointing": True},
        "last": {"gradient_steps": 1},
    }.items():
        noise = draw_noise([0, 1], any_denoiser.latent_shape).requires_grad_()
        images = render(any_denoiser, noise, conditioning, 3, 2.0, **options)
        torch.testing.assert_close(images, value)
        images.square().mean().backward()
        gradients[name] = noise.grad
    torch.testing.assert_close(gradients["plain"], gradients["checkpointed"], atol=1e-8, rtol=1e-4)
    assert gradients["last"].abs().max() > 0
    assert not torch.allclose(gradients["last"], gradients["plain"])
    assert not any_denoiser.network.is_gradient_checkpointing


def test_rendered_images_are_the_pipelines(any_denoiser: Denoiser) -> None:
    noise, conditioning = draw_noise([0, 1], any_denoiser.latent_shape), any_denoiser.encode(PROMPTS)
    images = pixels(sample_images(any_denoiser, conditioning, noise, SampleSettings(steps=2, guidance=3.0)))
    with torch.no_grad():
        rendered = render(any_denoiser, noise, conditioning, 2, 3.0)
        latents = render(any_denoiser, noise, conditioning, 2, 3.0, output="latents")
    if type(any_denoiser.pipe.scheduler).__name__ != "DDPMScheduler":  # which adds noise of its own
        assert (rendered.mul(255).round().permute(0, 2, 3, 1) - images).abs().max() <= 1
    torch.testing.assert_close(any_denoiser.decode(latents) / 2 + 0.5, rendered, atol=1e-5, rtol=1e-4)


def test_bad_input(any_denoiser: Denoiser) -> None:
    noise, conditioning = draw_noise([0, 1], any_denoiser.latent_shape), any_denoiser.encode(PROMPTS)
    with pytest.raises(SettingsError, match="as many prompts and seeds"):
        sample_images(any_denoiser, conditioning, noise, DDIM, seeds=[1])
    with pytest.raises(SettingsError, match="gradient_steps"):
        render(any_denoiser, noise, conditioning, 3, 2.0, gradient_steps=4)

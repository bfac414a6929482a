"""The adapter over pipelines: predictions, conditioning, decoding, errors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from npnet_training.errors import ModelError, SettingsError
from npnet_training.sampling import Conditioning, Denoiser, draw_noise
from support import families
from support.pipelines import PIPELINES, sdxl

PROMPTS = ["a red cup", "two cats", "b"]


def test_shapes(any_denoiser: Denoiser) -> None:
    assert any_denoiser.latent_shape == (4, 16, 16)
    assert any_denoiser.text_shape == (77, 32)
    assert any_denoiser.encode(PROMPTS).prompt_embeds.shape == (3, 77, 32)
    assert any_denoiser.schedule.prediction_type == "epsilon"
    alpha, sigma = any_denoiser.alphas(500)
    assert alpha**2 + sigma**2 == pytest.approx(1)


def test_guidance(any_denoiser: Denoiser) -> None:
    noise, conditioning = draw_noise([0, 1, 2], any_denoiser.latent_shape), any_denoiser.encode(PROMPTS)
    with torch.no_grad():
        at = {scale: any_denoiser.predict(noise, 901, conditioning, scale) for scale in (1.0, 2.0, 4.0)}
    torch.testing.assert_close(at[4.0], at[1.0] + 3 * (at[2.0] - at[1.0]), atol=1e-5, rtol=1e-4)
    assert (at[2.0] - at[1.0]).abs().max() > 1e-4
    bare = any_denoiser.encode(PROMPTS, unconditional=False)
    with torch.no_grad():
        torch.testing.assert_close(any_denoiser.predict(noise, 901, bare, 1.0), at[1.0])
    with pytest.raises(SettingsError, match="negative prompt"):
        any_denoiser.predict(noise, 901, bare, 2.0)
    with pytest.raises(SettingsError, match="expected 1, which is none, or more, given 0.5"):
        any_denoiser.predict(noise, 901, conditioning, 0.5)


@pytest.mark.parametrize("name", list(families.FORWARD))
@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 16, 24)])
def test_it_is_the_network_called_by_hand(name: str, shape: tuple[int, int, int]) -> None:
    denoiser = Denoiser(PIPELINES[name]())
    noise, conditioning = draw_noise([0, 1], shape), denoiser.encode(PROMPTS[:2], "ugly")
    for timestep in (901, 41):
        for guidance in (1.0, 4.5):
            with torch.no_grad():
                given = denoiser.predict(noise, timestep, conditioning, guidance)
                expected = families.output(name, denoiser.pipe, noise, timestep, conditioning, guidance)
            torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


def test_every_row_has_its_own_prompt(any_denoiser: Denoiser) -> None:
    noise = draw_noise([5], any_denoiser.latent_shape).expand(3, -1, -1, -1)
    conditioning = any_denoiser.encode(PROMPTS)
    with torch.no_grad():
        together = any_denoiser.predict(noise, 901, conditioning, 4.0)
        one = any_denoiser.predict(noise[:1], 901, conditioning[2:3], 4.0)
    torch.testing.assert_close(together[2:], one, atol=1e-5, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-4


def test_conditionings_are_cut_and_joined(any_denoiser: Denoiser) -> None:
    whole = any_denoiser.encode(PROMPTS, "ugly")
    again = Conditioning.cat([whole[:1], whole[[1, 2]]]).to("cpu")
    assert len(again) == 3
    for name, value in whole.arguments(True).items():
        assert torch.equal(again.arguments(True)[name], value)
    other = any_denoiser.encode(PROMPTS, "pretty").arguments(True)
    assert not torch.equal(other["negative_prompt_embeds"], whole.arguments(True)["negative_prompt_embeds"])
    assert Conditioning.cat([whole, any_denoiser.encode(PROMPTS, unconditional=False)]).negative is None


def test_predictions_are_differentiable(any_denoiser: Denoiser) -> None:
    noise = draw_noise([0, 1, 2], any_denoiser.latent_shape).requires_grad_()
    any_denoiser.predict(noise, 901, any_denoiser.encode(PROMPTS), 2.0).square().mean().backward()
    assert noise.grad is not None
    assert torch.isfinite(noise.grad).all()
    assert noise.grad.abs().max() > 0


def test_zero_terminal_snr(with_scheduler) -> None:
    """No signal at the first timestep: the clean latents cannot come from the noise."""
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    denoiser = with_scheduler("stable-diffusion", "DDIMScheduler", prediction_type="v_prediction", **options)
    first = denoiser.timesteps(10)[0]
    assert denoiser.alphas(first)[0] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        prediction = denoiser.denoise(draw_noise([0], (4, 16, 16)), first, denoiser.encode(["a"]), 5.0)
    assert torch.isfinite(prediction.clean).all()
    assert torch.isfinite(prediction.noise).all()


def test_noise_is_known_by_its_seed() -> None:
    rows = draw_noise([7, 8, 7], (4, 3, 5))
    assert rows.shape == (3, 4, 3, 5)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1:2], draw_noise([8], (4, 3, 5)))
    assert draw_noise([], (4, 3, 5)).shape == (0, 4, 3, 5)


def test_decoding_is_the_pipelines(any_denoiser: Denoiser) -> None:
    latents = draw_noise([0, 1], any_denoiser.latent_shape).requires_grad_()
    images = any_denoiser.decode(latents)
    vae = any_denoiser.pipe.vae
    with torch.no_grad():
        expected = vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(images, expected)
    images.mean().backward()
    assert latents.grad is not None


def test_unknown_models() -> None:
    with pytest.raises(ModelError, match="expected a text-to-image pipeline"):
        Denoiser(SimpleNamespace())
    pipe = sdxl()
    pipe.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ModelError, match="'sample'"):
        Denoiser(pipe).timesteps(4)
    pipe = sdxl()
    pipe.unet.register_to_config(in_channels=9)
    with pytest.raises(ModelError, match="inpainting"):
        Denoiser(pipe)

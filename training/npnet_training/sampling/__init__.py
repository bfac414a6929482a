"""Sampling on a pipeline's own denoiser: predictions, re-denoised noise, latents, images."""

from npnet_training.sampling.conditioning import Conditioning
from npnet_training.sampling.denoiser import Denoiser
from npnet_training.sampling.images import SampleSettings, render, sample_images
from npnet_training.sampling.latents import sample_latents
from npnet_training.sampling.noise import draw_noise
from npnet_training.sampling.redenoise import RedenoiseSettings, redenoise
from npnet_training.sampling.schedule import NoiseSchedule, Prediction

__all__ = [
    "Conditioning",
    "Denoiser",
    "NoiseSchedule",
    "Prediction",
    "RedenoiseSettings",
    "SampleSettings",
    "draw_noise",
    "redenoise",
    "render",
    "sample_images",
    "sample_latents",
]

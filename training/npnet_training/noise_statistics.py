"""What kind of noise an arm begins from: golden noise should still look like noise to the denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

STATISTICS = ("mean", "std", "kurtosis", "slope", "change")


def noise_statistics(noise: Tensor, plain: Tensor) -> dict[str, list[float]]:
    """Statistics of each noise of a batch.

    `kurtosis` is in excess of the normal distribution's. `slope` is that of log power over log spatial
    frequency: 0 for white noise, negative where low frequencies are stronger. `change` is the norm of the
    difference from the plain noise over the norm of that.

    Args:
        noise: (B, C, H, W).
        plain: the noise it was made from.

    Returns:
        B numbers for each name in `STATISTICS`.
    """
    flat, before = noise.double().flatten(1), plain.double().flatten(1)
    mean, std = flat.mean(1), flat.std(1)
    kurtosis = ((flat - mean[:, None]) / std[:, None]).pow(4).mean(1) - 3
    change = (flat - before).norm(dim=1) / before.norm(dim=1)
    values = (mean, std, kurtosis, _slope(noise.double()), change)
    return {name: value.tolist() for name, value in zip(STATISTICS, values, strict=True)}


def _slope(noise: Tensor) -> Tensor:
    height, width = noise.shape[-2:]
    power = torch.fft.fft2(noise).abs().square().mean(1).flatten(1)
    rows, columns = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    frequency = (rows[:, None].square() + columns.square()).sqrt().flatten().to(noise.device)
    kept = frequency > 0  # the mean has no frequency
    x, y = frequency[kept].double().log(), power[:, kept].clamp_min(1e-300).log()
    x = x - x.mean()
    return (y * x).sum(1) / x.square().sum()

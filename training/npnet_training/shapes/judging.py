"""How often a pipeline's images are true to their prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from npnet_training.sampling import Conditioning, Denoiser, draw_noise, sample_latents
from npnet_training.shapes.grammar import Facts
from npnet_training.shapes.verify import verify

Change = Callable[[Tensor, Conditioning], Tensor]
"""Noise (B, C, H, W) and its prompts -> the noise to begin from."""


@torch.no_grad()
def strict_rate(
    pipe: Any,
    prompts: Sequence[str],
    change: Change | None = None,
    *,
    steps: int = 10,
    guidance: float = 1.0,
    seed: int = 0,
    batch: int = 100,
) -> NDArray[np.bool_]:
    """Whether each prompt's image passes strictly, (N,) bool, by DDIM from noise of seeds seed, seed + 1, ...

    Args:
        pipe: of the shapes world.
        prompts: N of them.
        change: applied to the noise first.
        steps: of DDIM.
        guidance: classifier-free guidance.
        seed: of the first prompt's noise.
        batch: images at once.
    """
    denoiser = Denoiser(pipe)
    passed = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        conditioning = denoiser.encode(part)
        noise = draw_noise(range(seed + start, seed + start + len(part)), denoiser.latent_shape).to(
            pipe.device
        )
        if change is not None:
            noise = change(noise, conditioning)
        images = denoiser.decode(sample_latents(denoiser, noise, conditioning, steps, guidance)) / 2 + 0.5
        passed += [
            verify(image, Facts.parse(prompt)).strict
            for prompt, image in zip(part, images.cpu().numpy(), strict=True)
        ]
    return np.array(passed)

"""How often a pipeline's images are true to their prompts, and what is wrong first with the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npnet_training.sampling import Conditioning, Denoiser, draw_noise, render
from npnet_training.scenes.grammar import Scene
from npnet_training.scenes.networks import TOKENS
from npnet_training.scenes.placing import Size
from npnet_training.scenes.second_judge import SecondJudge
from npnet_training.scenes.verify import failure_of, verify

Change = Callable[[Tensor, Conditioning], Tensor]
"""Noise (B, C, H, W) and its prompts -> the noise to begin from."""


@dataclass(frozen=True)
class Judged:
    """What the judge says of an image.

    Args:
        kind: of its prompt, one of `grammar.KINDS`.
        strict: whether all is true.
        failure: what is wrong first, one of `verify.FAILURES`; None if nothing is.
        second: whether all is true by the second judge; None if it was not asked.
    """

    kind: str
    strict: bool
    failure: str | None
    second: bool | None = None


@torch.no_grad()
def judged(
    pipe: Any,
    prompts: Sequence[str],
    change: Change | None = None,
    *,
    steps: int = 10,
    guidance: float = 1.0,
    seed: int = 1_000_000,
    batch: int = 50,
    size: Size = (64, 64),
    second_judge: SecondJudge | None = None,
) -> list[Judged]:
    """Each prompt's image judged, from noise of the seeds seed, seed + 1, ...

    Args:
        pipe: of this world.
        prompts: N of them.
        change: applied to the noise first.
        steps: of Euler's method.
        guidance: of two predictions; 1 for none.
        seed: of the first prompt's noise.
        batch: images at once.
        size: of the images in pixels.
        second_judge: asked too, if given.
    """
    denoiser = Denoiser(pipe, size, {"max_sequence_length": TOKENS})
    found = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        conditioning = denoiser.encode(part)
        seeds = range(seed + start, seed + start + len(part))
        noise = draw_noise(seeds, denoiser.latent_shape).to(denoiser.device)
        if change is not None:
            noise = change(noise, conditioning)
        images = render(denoiser, noise, conditioning, steps, guidance, seeds=seeds).cpu()
        scenes = [Scene.parse(prompt) for prompt in part]
        second = [None] * len(part) if second_judge is None else second_judge.strict(images, scenes)
        for image, scene, also in zip(images.numpy(), scenes, second, strict=True):
            verdict = verify(image, scene)
            found.append(Judged(scene.kind, verdict.strict, failure_of(verdict, scene), also))
    return found

"""Images of the same prompts and seeds from plain and from golden noise, each judged, and the times taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from torch import Tensor

from npnet_runtime import GoldenNoise
from npnet_training.demo.settings import DemoSettings
from npnet_training.evaluation.arms import changed_by_engine
from npnet_training.evaluation.evaluator import CANDIDATES
from npnet_training.sampling import Conditioning, Denoiser, SampleSettings, draw_noise, sample_images
from npnet_training.shapes.verify import Verdict

if TYPE_CHECKING:
    from PIL import Image

PLAIN, GOLDEN = "plain", "golden"
ROUNDS = 15  # of timing one image


@dataclass(frozen=True)
class Drawn:
    """An image of an arm - plain, golden, best-of-2 - from its seed, and what the judge says of it."""

    prompt: str
    seed: int
    image: Image.Image
    verdict: Verdict


@dataclass
class Times:
    """Seconds an image: making noise golden, and all calls of the denoiser for it. One entry a batch."""

    golden: list[float] = field(default_factory=list)
    denoising: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float | int]:
        """Medians in milliseconds, and their ratio."""
        golden, denoising = 1000 * median(self.golden), 1000 * median(self.denoising)
        return {
            "rounds": len(self.golden),
            "golden_ms": golden,
            "denoising_ms": denoising,
            "share_of_denoising": golden / denoising,
        }


class Artist:
    """A pipeline of a world before which golden noise can be made.

    Args:
        settings: of the demo.
        golden: the engine.
        denoiser: one of the world's.

    Raises:
        AssetsError: a file of the model is missing or altered.
    """

    def __init__(self, settings: DemoSettings, golden: GoldenNoise, denoiser: str) -> None:
        self.pipe = settings.about.model.load(denoiser, folder=settings.models)
        self.settings, self.name = settings, denoiser
        self.denoiser = Denoiser(self.pipe)
        self._make_golden = changed_by_engine(golden, self.denoiser)
        self.times = Times()
        self._sample = SampleSettings(
            steps=settings.steps_of(denoiser), guidance=settings.guidance_of(denoiser)
        )

    def draw(self, prompts: Sequence[str], say: Callable[[str], None]) -> dict[str, list[Drawn]]:
        """The images of every arm in the order of the prompts; image i is from seed `settings.seed` + i.

        Args:
            prompts: one for each image.
            say: told how many are done.
        """
        arms: dict[str, list[Drawn]] = {}
        self._once(self._encode(prompts[:1]), self._noise([self.settings.seed]))  # first calls are slow
        for first in range(0, len(prompts), self.settings.batch):
            part = list(prompts[first : first + self.settings.batch])
            seeds = [self.settings.seed + first + row for row in range(len(part))]
            for arm, drawn in self._batch(part, seeds).items():
                arms.setdefault(arm, []).extend(drawn)
            say(f"{self.name} denoiser: {first + len(part)} of {len(prompts)} pairs drawn")
        return arms

    def time_one(self, prompt: str) -> dict[str, float | int]:
        """Times of one image alone, not in a batch: golden noise and denoising in turns."""
        conditioning, noise = self._encode([prompt]), self._noise([self.settings.seed])
        times = Times()
        for _ in range(ROUNDS):
            golden, denoising = self._once(conditioning, noise)
            times.golden.append(golden)
            times.denoising.append(denoising)
        return times.summary()

    def _batch(self, prompts: list[str], seeds: list[int]) -> dict[str, list[Drawn]]:
        conditioning, noise = self._encode(prompts), self._noise(seeds)
        began = time.perf_counter()
        better = self._make_golden(noise, conditioning)
        self.times.golden.append((time.perf_counter() - began) / len(seeds))
        with _stopwatch(self.denoiser.network) as calls:
            plain = self._judged(prompts, seeds, conditioning, noise)
        self.times.denoising.append(sum(calls) / len(seeds))
        arms = {PLAIN: plain, GOLDEN: self._judged(prompts, seeds, conditioning, better)}
        if self.settings.compare:
            others = [seed + CANDIDATES for seed in seeds]
            second = self._judged(prompts, others, conditioning, self._noise(others))
            arms[self.settings.compare] = [
                max(pair, key=lambda drawn: drawn.verdict.score) for pair in zip(plain, second, strict=True)
            ]
        return arms

    def _judged(
        self, prompts: list[str], seeds: list[int], conditioning: Conditioning, noise: Tensor
    ) -> list[Drawn]:
        images = sample_images(self.denoiser, conditioning, noise, self._sample, seeds=seeds)
        return [
            Drawn(prompt, seed, image, self.settings.about.judge(prompt, image))
            for prompt, seed, image in zip(prompts, seeds, images, strict=True)
        ]

    def _once(self, conditioning: Conditioning, noise: Tensor) -> tuple[float, float]:
        began = time.perf_counter()
        self._make_golden(noise, conditioning)
        golden = time.perf_counter() - began
        with _stopwatch(self.denoiser.network) as calls:
            sample_images(self.denoiser, conditioning, noise, self._sample)
        return golden, sum(calls)

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        return self.denoiser.encode(prompts, unconditional=self.settings.guidance_of(self.name) > 1)

    def _noise(self, seeds: list[int]) -> Tensor:
        return draw_noise(seeds, self.denoiser.latent_shape)


@contextmanager
def _stopwatch(network: Any) -> Iterator[list[float]]:
    """Seconds of each call of a network on the CPU, without what the pipeline does between them."""
    calls: list[float] = []
    began = 0.0

    def start(*_: Any) -> None:
        nonlocal began
        began = time.perf_counter()

    def stop(*_: Any) -> None:
        calls.append(time.perf_counter() - began)

    hooks = network.register_forward_pre_hook(start), network.register_forward_hook(stop)
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()

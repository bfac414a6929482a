"""Time, memory and disk of a collection and of a training run, on a GPU by name. Nothing here is measured."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from npnet_runtime.integrations.diffusers.adapter import adaptable_layers
from npnet_training.planning.calls import decoder_call, denoiser_call
from npnet_training.planning.counting import Counted, count, parameters_of
from npnet_training.planning.gpus import UTILISATION, Gpu
from npnet_training.planning.parts import Parts
from npnet_training.sampling import RedenoiseSettings, SampleSettings

_GIB = 1 << 30
_DECODER_BLOCKS = ("UpDecoderBlock2D", "UNetMidBlock2D", "ResBlock", "EfficientViTBlock")
ADAM_BYTES = 16
"""Of a trained weight: itself, its gradient and two moments, in float32."""


@dataclass(frozen=True)
class CollectionPlan:
    """What a number of pairs would take.

    Args:
        evaluations: of the denoiser for one pair; one of mixed guidance counts twice.
        decoded: images for one pair.
        tflops: operations for one pair, in 10^12.
        gpu_hours: of all pairs.
        megabytes: of the dataset.
        weights_gib: of the model in half precision.
    """

    pairs: int
    evaluations: int
    decoded: int
    tflops: float
    gpu_hours: float
    megabytes: float
    weights_gib: float


def plan_collection(
    parts: Parts,
    pairs: int,
    gpu: Gpu,
    redenoise: RedenoiseSettings | None,
    sample: SampleSettings | None,
) -> CollectionPlan:
    """What a collection would take.

    Args:
        parts: of the model.
        pairs: how many.
        gpu: where.
        redenoise: how targets are made; None without.
        sample: how the two images of a pair are made that are judged; None without.

    Raises:
        ModelError: there is no estimate for such a denoiser.
    """
    evaluations = images = 0
    if redenoise is not None:
        mixed = parts.mixes and redenoise.weight in ("auto", "guidance")
        scales = (redenoise.guidance, redenoise.inversion_guidance)
        evaluations = redenoise.repetitions * sum(2 if mixed and scale > 1 else 1 for scale in scales)
    if sample is not None:
        guided = parts.mixes and (sample.guidance is None or sample.guidance > 1)
        images = 2
        evaluations += images * sample.steps * (2 if guided else 1)
    denoised, decoded = _flops(parts)
    text = 2.0 * parts.text_parameters * parts.tokens
    flops = evaluations * denoised + images * decoded + text
    hours = pairs * flops / (UTILISATION * gpu.peak * 1e12) / 3600
    return CollectionPlan(
        pairs, evaluations, images, flops / 1e12, hours, 2 * math.prod(parts.latent) * pairs / 1e6,
        2 * _weights(parts) / _GIB,
    )  # fmt: skip


@functools.cache
def _flops(parts: Parts) -> tuple[float, float]:
    """Of one evaluation of the denoiser, and of one decoded image."""
    denoised = count(parts.denoiser, denoiser_call(parts))
    return denoised.flops, count(parts.autoencoder, decoder_call(parts)).flops


def describe_collection(plan: CollectionPlan, parts: Parts, gpu: Gpu) -> str:
    """In words."""
    return (
        f"ESTIMATE, nothing was run: {plan.pairs} pairs of {parts.name} on {gpu.name}: {plan.evaluations} "
        f"evaluations of the denoiser and {plan.decoded} decoded images a pair, {plan.tflops:.1f} TFLOP; "
        f"about {plan.gpu_hours:.1f} GPU hours at {UTILISATION:.0%} of {gpu.peak:.0f} TFLOP/s, "
        f"{plan.megabytes:.0f} MB of pairs; the model's weights are {plan.weights_gib:.1f} of "
        f"{gpu.memory:.0f} GiB in half precision. Judges are not counted"
    )


@dataclass(frozen=True)
class Rendering:
    """How images are made while training; see `SamplerSettings`."""

    steps: int
    guidance: float
    gradient_steps: int | None
    checkpointing: bool
    bytes_each: int


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of one process of a training run, in GiB.

    Args:
        parts: by name, what is there whatever the batch.
        per_image: what every image of a batch adds.
        batch: images at once.
        gpu: that it has to fit into.
    """

    parts: Mapping[str, float]
    per_image: Mapping[str, float]
    batch: int
    gpu: Gpu

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts.values()) + self.batch * sum(self.per_image.values())

    @property
    def most_images(self) -> int:
        """Images at once that fit, a tenth of the memory left to everything else; 0 if not one does."""
        free = 0.9 * self.gpu.memory - sum(self.parts.values())
        return max(0, math.floor(free / max(1e-9, sum(self.per_image.values()))))


def plan_memory(
    parts: Parts, sampler: Rendering, batch: int, gpu: Gpu, trained: int, lora_rank: int = 0
) -> MemoryPlan:
    """Memory of training through the model's own images.

    Args:
        parts: of the model.
        sampler: how images are made while training.
        batch: images at once.
        gpu: that it has to fit into.
        trained: weights of the trained network; ignored with a LoRA.
        lora_rank: of a LoRA on the denoiser; 0 for none.

    Raises:
        ModelError: there is no estimate for such a denoiser.
    """
    scale = sampler.bytes_each / 2  # counted in half precision
    denoiser = count(parts.denoiser, denoiser_call(parts), _blocks(parts))
    decoder = count(parts.autoencoder, decoder_call(parts), _DECODER_BLOCKS)
    guided = 2 if parts.mixes and sampler.guidance > 1 else 1
    steps = min(sampler.steps, sampler.gradient_steps or sampler.steps)
    fixed = {
        "the model's weights": sampler.bytes_each * _weights(parts) / _GIB,
        "trained weights, gradients and moments": ADAM_BYTES * trained / _GIB,
    }
    each = {
        f"{steps} steps of the denoiser": steps * guided * scale * _kept(denoiser, sampler) / _GIB,
        "the decoder": scale * _kept(decoder, sampler) / _GIB,
    }
    if lora_rank:
        fixed["trained weights, gradients and moments"] = ADAM_BYTES * lora_weights(parts, lora_rank) / _GIB
        # All of its evaluation is there at once, but not beside the images' own.
        own = scale * denoiser.whole / _GIB
        largest = max(own, sum(each.values()))
        each = {"the larger of the images and of the LoRA's own evaluation": largest}
    return MemoryPlan(fixed, each, batch, gpu)


def describe_memory(plan: MemoryPlan, parts: Parts) -> str:
    """In words, with what to change where it does not fit."""
    lines = [f"ESTIMATE, nothing was run: memory of one process on {plan.gpu.name}, with {parts.name}"]
    lines += [f"  {name}: {value:.1f} GiB" for name, value in plan.parts.items()]
    lines += [
        f"  {name}: {value:.2f} GiB an image, {plan.batch} at once" for name, value in plan.per_image.items()
    ]
    total = f"  in all about {plan.total:.0f} of {plan.gpu.memory:.0f} GiB, rewards and the network's own "
    if plan.total <= 0.9 * plan.gpu.memory:
        return "\n".join([*lines, total + "activations not counted: it fits"])
    advice = "give --reward.dtype bfloat16, fewer --reward.steps or --reward.gradient-steps 1"
    if plan.most_images:
        advice = f"{plan.most_images} images at once fit: raise --accumulation, or {advice}"
    return "\n".join([*lines, total + f"activations not counted: it does NOT fit; {advice}"])


def lora_weights(parts: Parts, rank: int) -> int:
    """Weights of a LoRA in every linear and convolutional layer of the denoiser."""
    total = 0
    for name in adaptable_layers(parts.denoiser):
        weight = parts.denoiser.get_parameter(f"{name}.weight")
        total += rank * (weight.shape[0] + math.prod(weight.shape[1:]))
    return total


def _kept(counted: Counted, sampler: Rendering) -> int:
    return counted.checkpointed if sampler.checkpointing else counted.whole


def _weights(parts: Parts) -> int:
    return parameters_of(parts.denoiser) + parameters_of(parts.autoencoder) + parts.text_parameters


def _blocks(parts: Parts) -> tuple[str, ...]:
    found = (getattr(parts.denoiser, name, None) for name in ("_repeated_blocks", "_no_split_modules"))
    return next((tuple(names) for names in found if names), ())

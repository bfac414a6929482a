"""The arms of an evaluation: where each image's noise comes from, and at what cost."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from npnet_runtime import GoldenLora, GoldenNoise
from npnet_runtime.integrations.diffusers.latent_space import check_latent_space
from npnet_runtime.integrations.diffusers.lora_file import find_lora
from npnet_runtime.integrations.diffusers.reading import reads_of
from npnet_training.errors import SettingsError
from npnet_training.evaluation.settings import EvaluateSettings
from npnet_training.sampling import Conditioning, Denoiser, redenoise
from npnet_training.scorers import NEVER_CHOOSE, Scorer, load_scorer

PLAIN = "plain"
Change = Callable[[Tensor, Conditioning], Tensor]
"""Noise (B, C, H, W) on the model's device and its prompts -> the noise to begin from."""


@dataclass(frozen=True)
class Arm:
    """One way to choose the noise.

    Args:
        name: in the report.
        change: makes the noise from the plain one; None leaves it.
        candidates: images made, of which `chooser` picks one; the first is the plain one.
        chooser: judge of candidates.
        engine: digest of the bundle behind it.
    """

    name: str
    change: Change | None = None
    candidates: int = 1
    chooser: Scorer | None = None
    engine: str | None = None


def make_arms(settings: EvaluateSettings, denoiser: Denoiser) -> list[Arm]:
    """The plain arm, and those that the settings name.

    Raises:
        SettingsError: an arm that cannot be read.
        BundleError, BackendError: an engine that cannot be loaded.
        PipelineError: an engine of another latent space.
        ScorerError: a scorer that cannot be loaded.
    """
    return [Arm(PLAIN), *(_make(text, settings, denoiser) for text in settings.arms)]


def _make(text: str, settings: EvaluateSettings, denoiser: Denoiser) -> Arm:
    if found := re.fullmatch(r"redenoised(?::(guidance|embedded|text-mix))?", text):
        how = settings.redenoise.model_copy(update={"weight": found[1]} if found[1] else {})
        how.weight_for(denoiser)
        return Arm(text, lambda noise, prompts: redenoise(denoiser, noise, prompts, how))
    if text.startswith("golden:"):
        if find_lora(text.removeprefix("golden:")) is not None:
            return _lora_arm(text, denoiser)
        golden = GoldenNoise(Path(text.removeprefix("golden:")), device=settings.device)
        return Arm(text, changed_by_engine(golden, denoiser), engine=golden.bundle.digest)
    if found := re.fullmatch(r"best-of-(\d+):(.+)", text):
        count = int(found[1])
        if count < 2:
            raise SettingsError(f"--arms {text}: expected best of 2 or more")
        if found[2] in NEVER_CHOOSE:
            raise SettingsError(f"--arms {text}: {found[2]} judges only, so that it stays independent")
        chooser = load_scorer(found[2], device=settings.device, offline=settings.offline)
        return Arm(text, None, count, chooser)
    known = "golden:ENGINE_DIR, redenoised[:WEIGHT] or best-of-N:SCORER"
    raise SettingsError(f"--arms: expected {known}, given {text!r}")


def changed_by_engine(golden: GoldenNoise, denoiser: Denoiser) -> Change:
    """What an engine makes of noise and its prompts.

    Raises:
        PipelineError: it is for another latent space, or reads what the pipeline does not encode.
    """
    manifest = golden.bundle.manifest
    check_latent_space(denoiser.pipe, manifest.latent_space)
    reads = reads_of(manifest, denoiser.reads)

    def change(noise: Tensor, prompts: Conditioning) -> Tensor:
        own = manifest.text_encoder is not None
        return golden(noise, golden.encode(prompts.texts) if own else denoiser.prompt(prompts, reads))

    return change


def _lora_arm(text: str, denoiser: Denoiser) -> Arm:
    lora = GoldenLora(text.removeprefix("golden:"))
    bound = lora.bind(denoiser.pipe, f"npnet_{lora.digest[:12]}")

    def change(noise: Tensor, prompts: Conditioning) -> Tensor:
        with torch.no_grad():
            arguments = denoiser.call_arguments(prompts, 1.0, noise.shape)
            return noise + bound.change(noise, arguments, denoiser.steered).to(noise)

    return Arm(text, change, engine=lora.digest)

"""What a run's report says of the network it made, beyond its loss: branches, prompts, noise, curves."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npnet_runtime.files import atomic_file
from npnet_runtime.golden_statistics import collapse_of
from npnet_runtime.networks.npnet import NPNet
from npnet_runtime.networks.registry import Network
from npnet_training.noise_statistics import noise_statistics
from npnet_training.training.data import TrainingData
from npnet_training.training.generator_lora import GeneratorLora
from npnet_training.training.losses import target_of
from npnet_training.training.measuring import golden_of
from npnet_training.training.order import BatchRows, in_batches
from npnet_training.training.progress import Progress
from npnet_training.training.settings import TrainSettings

MOST, BATCH = 256, 32
CURVES = "curves.png"
_SPECTRAL = ("spectral_head.f_mlp.2.weight", "spectral_head.f_mlp.2.bias")
_TEXT = ("prompt_half.text_affine.weight", "prompt_half.text_affine.bias")
ABLATIONS = {
    "spectral only": ("alpha", "beta"),
    "residual only": ("alpha", *_SPECTRAL),
    "text off": ("alpha", *_TEXT),
}
"""Parameters of an NPNet that are set to zero: the branches they end are then gone."""


def summarize(
    settings: TrainSettings, data: TrainingData, progress: Progress, last: dict[str, float], seconds: float
) -> dict[str, Any]:
    """What a run was and came to: `run.json` but for `report`, which is `describe`'s.

    Args:
        settings: of the run.
        data: that it read.
        progress: where it ended.
        last: errors of its last weights.
        seconds: that it took, since it was last resumed.
    """
    info = data.pairs.info
    return {
        "settings": settings.model_dump(mode="json"),
        "model": info.model,
        "revision": info.revision,
        "pairs": {
            "train": len(data.train),
            "validation": len(data.validation),
            "quarantined": data.quarantined,
        },
        "targets": info.has_targets,
        "steps": progress.step,
        "seconds": round(seconds, 1),
        "best_validation_loss": progress.best if math.isfinite(progress.best) else None,
        "last": last,
        "collapsed": collapse_of(last),
        "history": progress.history,
    }


def describe(network: Network | GeneratorLora, data: TrainingData, device: torch.device) -> dict[str, Any]:
    """What a trained network does on validation pairs (on training pairs where there are none).

    Args:
        network: on the device.
        data: whose pairs to look at, at most 256.
        device: where.

    Returns:
        `explained`, the share of the golden change that the network explains: whole, with the prompts of
        others, and for an NPNet with branches left out. `noise` and `target`, statistics of golden noise and
        of what it was to be.
    """
    rows = data.validation if len(data.validation) else data.train
    rows = rows[:MOST]
    variants: dict[str, Network | GeneratorLora] = {"whole": network}
    if isinstance(network, NPNet):
        variants |= {name: ablated(copy.deepcopy(network), name) for name in ABLATIONS}
    errors = dict.fromkeys([*variants, "prompts of others", "identity"], 0.0)
    noises: list[dict[str, list[float]]] = []
    wanted: list[dict[str, list[float]]] = []
    keys = [BatchRows(0, part.tolist()) for part in in_batches(rows, data.pairs.groups, BATCH)]
    with torch.no_grad():
        for batch in data.plain_reader.batches(keys, device, 0):
            target = target_of(batch)
            found = {name: golden_of(variant, batch) for name, variant in variants.items()}
            noises.append(_statistics(found["whole"], batch.source))
            wanted.append(_statistics(target, batch.source))
            found["prompts of others"] = golden_of(network, batch.with_prompts_of_others())
            found["identity"] = batch.source
            for name, golden in found.items():
                errors[name] += float((golden - target).double().square().sum())
    identity = errors.pop("identity")
    return {
        "pairs": len(rows),
        "explained": {name: 1 - error / identity if identity else 0.0 for name, error in errors.items()},
        "noise": _means(noises),
        "target": _means(wanted),
    }


def ablated(network: Network, ablation: str) -> Network:
    """The same NPNet without branches, one of `ABLATIONS`; changed in place."""
    for name in ABLATIONS[ablation]:
        network.get_parameter(name).data.zero_()
    return network


def _statistics(noise: Tensor, source: Tensor) -> dict[str, list[float]]:
    return noise_statistics(noise.float().cpu(), source.float().cpu())


def _means(batches: list[dict[str, list[float]]]) -> dict[str, float]:
    return {
        name: float(np.mean([value for batch in batches for value in batch[name]])) for name in batches[0]
    }


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw the losses of a run as a PNG: of training, of validation, and of the identity map."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    trained = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    judged = [(entry["step"], entry["validation"]) for entry in history if "validation" in entry]
    if trained:
        axes.plot(*zip(*trained, strict=True), label="training loss", alpha=0.6)
    if judged:
        steps = [step for step, _ in judged]
        for name, label in (("loss", "validation loss"), ("mse", "validation MSE")):
            axes.plot(steps, [found[name] for _, found in judged], label=label)
        axes.axhline(judged[-1][1]["identity"], color="grey", linestyle="--", label="identity map")
    if all(loss > 0 for _, loss in trained) and all(found["loss"] > 0 for _, found in judged):
        axes.set_yscale("log")  # a reward's loss may be below zero
    if trained or judged:
        axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

"""Measure the study's conditions, one evaluation each."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npnet_runtime import __version__
from npnet_runtime.files import atomic_file, sha256
from npnet_training.embedded import WorldName, find_embedded
from npnet_training.errors import StudyError
from npnet_training.evaluation import Results, evaluate
from npnet_training.evaluation.arms import PLAIN
from npnet_training.evaluation.settings import EvaluateSettings
from npnet_training.settings import differences
from npnet_training.study.arms import BUILT_IN, lora_arms, make_arms, read_networks
from npnet_training.study.conditions import CONDITIONS, Condition
from npnet_training.study.settings import StudySettings

SECOND = "scenes-second"
STUDY = "study.json"


def study(settings: StudySettings) -> dict[str, Any]:
    """Measure what is missing, and write `study.json`, where other conditions measured before remain.

    Returns:
        Its content: for each condition its settings, the sha256 of its denoiser, and a row for each arm:
        share of images that are strictly true, paired difference from plain noise with its 95 % interval,
        wins, ties, losses, mean score, cost, statistics of the noise, and diversity where a prompt has
        several seeds.

    Raises:
        StudyError: no networks, an unknown one is called the best, or the study in the folder is of others.
        TrainingError: see `evaluate`.
    """
    networks, loras = read_networks(settings.networks), lora_arms(settings.networks)
    known = [*networks, *loras.values()]
    if settings.best not in known:
        raise StudyError(f"--best: expected one of {', '.join(known)}, given {settings.best!r}")
    models = {CONDITIONS[settings.world][name].model for name in settings.measured}
    if settings.few_step is None and "few-step" in models:
        raise StudyError(
            "the few-step model's condition needs --few-step DIR; make it with python -m "
            "npnet_training.distill --output DIR, or give --conditions without it"
        )
    document = {
        "command": "python -m npnet_training.study",
        "settings": settings.model_dump(
            mode="json", exclude={"networks", "output", "conditions", "resume", "few_step"}
        ),
        "version": __version__,
        "networks": {path.stem: sha256(path) for path in sorted(settings.networks.glob("*.safetensors"))},
    }
    found = _measured_before(settings.output / STUDY, document)
    for name in settings.measured:
        condition = CONDITIONS[settings.world][name]
        model = settings.few_step if condition.model == "few-step" else condition.model
        arms = make_arms(networks, condition, settings.best)
        shown = [text for text, own in loras.items() if condition.arms != "short" or own == settings.best]
        wanted = _wanted(settings, condition, model, shown)
        results = evaluate(wanted, arms, lambda images, name=name: _say(name, images))  # type: ignore[misc]
        found[name] = {
            "model": condition.model,
            "denoiser": _denoiser(condition.model, settings.few_step),
            "sample": condition.sample.model_dump(mode="json"),
            "images": len(results.rows),
            "seeds": condition.seeds,
            **({"size": condition.size} if condition.size else {}),
            "rows": [_row(results, arm, settings, loras.get(arm, arm)) for arm in results.arms],
        }
    document["conditions"] = {name: found[name] for name in CONDITIONS[settings.world] if name in found}
    with atomic_file(settings.output / STUDY) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def _measured_before(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Conditions of the study in the folder, if it is of the same networks and settings."""
    if not path.exists():
        return {}
    try:
        earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wrong = [
            line
            for part in ("settings", "networks")
            for line in differences(earlier[part], dict.fromkeys(earlier[part]) | document[part])
        ]
        conditions: dict[str, Any] = earlier["conditions"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path}: cannot be read ({error}); delete it, or give another --output") from error
    if wrong:
        raise StudyError(f"{path} is another study; give another --output:\n  " + "\n  ".join(wrong))
    return conditions


def _denoiser(model: str, few_step: str | None) -> str:
    """sha256 of the weights of a condition's denoiser."""
    embedded = find_embedded(model)
    if embedded is None:
        folder = Path(str(few_step)) / "unet"
    else:
        folder = embedded[0].folder / embedded[0].denoisers[embedded[1]].folder
    return sha256(next(iter(folder.glob("*.safetensors"))))


def _wanted(
    settings: StudySettings, condition: Condition, model: str | None, loras: Sequence[str]
) -> EvaluateSettings:
    count = max(1, settings.prompts // condition.seeds)
    return EvaluateSettings(
        model=str(model),
        prompts=f"{settings.world}:held-out:{count}",
        output=folder_of(settings.output, condition.name),
        arms=(*BUILT_IN[settings.world][condition.arms], *loras),
        scorers=scorers_of(settings.world),
        size=condition.size,
        seeds=condition.seeds,
        sample=condition.sample,
        batch=settings.batch - settings.batch % condition.seeds or condition.seeds,
        resume=settings.resume,
    )


def folder_of(output: Path, condition: str) -> Path:
    """Where a condition's evaluation is stored."""
    return output / "".join(c if c.isalnum() else "-" for c in condition)


def scorers_of(world: WorldName) -> tuple[str, ...]:
    """Judges of a world: the share of facts, whether all are true, and the second judge if there is one."""
    return (world, f"{world}-strict", *((SECOND,) if world == "scenes" else ()))


def _row(results: Results, arm: str, settings: StudySettings, name: str) -> dict[str, Any]:
    measured, resamples = results.arms[arm], settings.resamples
    score, strict, *second = scorers_of(settings.world)
    row: dict[str, Any] = {
        "arm": name,
        "strict": float(measured["scores"][strict].mean()),
        "score": float(measured["scores"][score].mean()),
        "images_sampled": results.about["candidates"][arm],
        "noise": {name: float(values.mean()) for name, values in measured["noise"].items()},
    }
    if len(measured["diversity"]):
        row["diversity"] = float(measured["diversity"].mean())
    if arm != PLAIN:
        row["against_plain"] = vars(results.compare(arm, strict, resamples=resamples))
        if diversity := results.compare_diversity(arm, resamples=resamples):
            row["diversity_against_plain"] = vars(diversity)
    for judge in second:
        row["second_judge"] = {"strict": float(measured["scores"][judge].mean())}
        if arm != PLAIN:
            row["second_judge"]["against_plain"] = vars(results.compare(arm, judge, resamples=resamples))
    return row


def _say(name: str, images: int) -> None:
    print(f"{name}: {images} images of each arm", file=sys.stderr, flush=True)

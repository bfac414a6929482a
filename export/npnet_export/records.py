"""What trained weights and their evaluation were, read from what `npnet-train` and `npnet-evaluate` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from npnet_export.errors import ExportError

RUN, RESULTS, PLAIN = "run.json", "results.json", "plain"


def training_of(weights: Path) -> dict[str, str]:
    """How a checkpoint was trained, for the manifest: of the run in whose folder it lies; nothing elsewhere.

    Raises:
        ExportError: the record of the run is damaged.
    """
    path = weights.parent / RUN
    if not path.is_file():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        pairs, loss = run["pairs"]["train"], run["settings"]["loss"]
        return {
            "trained_for": str(run["model"]),
            "training": f"{run['steps']} steps on {pairs} pairs by the loss {loss}",
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{path}: damaged ({type(error).__name__}: {error}); move the checkpoint elsewhere, or bring the "
            "record back"
        ) from error


def evaluation_table(path: Path, digest: str) -> str:
    """What an evaluation found, for the model card.

    Args:
        path: folder of `npnet-evaluate`, or its `results.json`.
        digest: of the bundle that the card is of.

    Raises:
        ExportError: there is no evaluation, or one without an arm of golden noise.
    """
    path = path / RESULTS if path.is_dir() else path
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        settings, engines, results = found["settings"], found["engines"], found["results"]
        plain = results[PLAIN]["scores"]
        rows = [
            f"| {_name(arm)} | {scorer} | {plain[scorer]['mean']:.4g} | {score['mean']:.4g} | "
            f"{score['difference']:+.4g} ({score['low']:+.4g} to {score['high']:+.4g}) | "
            f"{score['wins']} / {score['ties']} / {score['losses']} |"
            for arm, entry in results.items()
            if arm != PLAIN
            for scorer, score in entry["scores"].items()
        ]
        guidance = settings["sample"]["guidance"]
        steps, model, images = settings["sample"]["steps"], settings["model"], found["images"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"--evaluation {path}: expected a folder of npnet-evaluate ({type(error).__name__}: {error})"
        ) from error
    if not engines:
        raise ExportError(
            f"--evaluation {path}: expected one with an arm golden:ENGINE, given "
            f"{', '.join(results)}; run npnet-evaluate --arms golden:ENGINE"
        )
    other = next(iter(engines.values()))[:12]
    which = "this very engine" if digest in engines.values() else f"an engine of digest {other}, not this one"
    guided = "of the pipeline" if guidance is None else guidance
    return "\n".join(
        [
            f"{images} images of {model} in each arm, {steps} steps, guidance {guided}, prompts of "
            f"`{Path(str(settings['prompts'])).name}`; golden noise by {which}. "
            "Differences with 95 % intervals.",
            "",
            "| noise | judge | plain | with it | difference | win / tie / lose |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _name(arm: str) -> str:
    return "golden" if arm.startswith("golden:") else arm

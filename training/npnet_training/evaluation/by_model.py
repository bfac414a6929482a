"""One evaluation in front of several models, such as those of a latent space, and the table over them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npnet_runtime.files import atomic_file
from npnet_runtime.weights.hub import looks_like_hub_id
from npnet_training.errors import SettingsError
from npnet_training.evaluation.arms import PLAIN
from npnet_training.evaluation.report import markdown_lines
from npnet_training.evaluation.settings import EvaluateSettings
from npnet_training.models import is_name

TABLE, VALUES = "models.md", "models.json"


def by_model(settings: EvaluateSettings) -> list[EvaluateSettings]:
    """The settings of each model's evaluation, in a folder of its name; of one model they are as they were.

    Raises:
        SettingsError: a model twice, one that cannot be, or a revision for several.
    """
    names = [name.strip() for name in settings.model.split(",") if name.strip()]
    if len(names) < 2 or Path(settings.model).exists():
        return [settings]
    for name in names:
        if not (is_name(name) or Path(name).expanduser().exists() or looks_like_hub_id(name)):
            # before hours are spent on those before it
            raise SettingsError(f"--model: expected names, folders or repositories, given {name!r}")
    if settings.revision is not None:
        raise SettingsError(
            "--revision: expected none with several models, as each has its own; leave it out"
        )
    folders = [re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model" for name in names]
    if len(set(folders)) < len(folders):
        raise SettingsError(f"--model: expected different models, given {settings.model}")
    return [
        settings.model_copy(update={"model": name, "output": settings.output / folder})
        for name, folder in zip(names, folders, strict=True)
    ]


def write_models(parts: Sequence[EvaluateSettings], folder: Path) -> Path:
    """Write the table over models as Markdown, and its numbers as JSON; where the table is.

    Args:
        parts: settings of the models' finished evaluations.
        folder: where to.
    """
    found: dict[str, dict[str, Any]] = {
        part.model: json.loads((part.output / "results.json").read_text(encoding="utf-8"))["results"]
        for part in parts
    }
    rows = [
        [
            model, arm, scorer, f"{results[PLAIN]['scores'][scorer]['mean']:.4g}", f"{score['mean']:.4g}",
            f"{score['difference']:+.4g} ({score['low']:+.4g} to {score['high']:+.4g})",
            f"{score['wins']} / {score['ties']} / {score['losses']}",
        ]
        for model, results in found.items()
        for arm, entry in results.items()
        if arm != PLAIN
        for scorer, score in entry["scores"].items()
    ]  # fmt: skip
    header = ["model", "arm", "scorer", "plain", "arm", "difference", "win / tie / loss"]
    lines = markdown_lines(header, rows)
    first = parts[0]
    lead = (
        f"The same prompts of {first.prompts} and the same seeds in front of each model. Differences are arm "
        "minus plain of the same model, with 95 % intervals by bootstrap over prompts."
    )
    with atomic_file(folder / VALUES) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    with atomic_file(folder / TABLE) as temporary:
        temporary.write_text("\n".join(["# Over models", "", lead, "", *lines]) + "\n", encoding="utf-8")
    return folder / TABLE

"""The gallery of a demo: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from npnet_training.demo.drawing import GOLDEN, PLAIN, Drawn
from npnet_training.demo.tables import Table

if TYPE_CHECKING:
    from PIL import Image

MOST = 200  # pairs shown in a group
_OUTCOMES = {
    (False, True): "golden right, plain wrong",
    (True, False): "plain right, golden wrong",
    (True, True): "both right",
    (False, False): "both wrong",
}


def write_gallery(
    path: Path,
    about: Sequence[str],
    tables: Sequence[Table],
    drawn: Mapping[str, Mapping[str, Sequence[Drawn]]],
    settings: Mapping[str, Any],
) -> None:
    """Write the tables and the images, grouped by which noise gave a right one.

    Args:
        path: of the HTML file.
        about: lines above the tables.
        tables: of the results.
        drawn: images by denoiser and arm.
        settings: shown at the end.
    """
    template = files("npnet_training.demo").joinpath("gallery.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True).from_string(template)
    text = page.render(
        about=about,
        tables=tables,
        arms=list(next(iter(drawn.values()))),
        groups=[group for denoiser, arms in drawn.items() for group in _groups(denoiser, arms)],
        settings=json.dumps(settings, indent=1),
    )
    path.write_text(text, encoding="utf-8")


def _groups(denoiser: str, arms: Mapping[str, Sequence[Drawn]]) -> list[dict[str, Any]]:
    rows: dict[tuple[bool, bool], list[int]] = {outcome: [] for outcome in _OUTCOMES}
    for row, (plain, golden) in enumerate(zip(arms[PLAIN], arms[GOLDEN], strict=True)):
        rows[plain.verdict.strict, golden.verdict.strict].append(row)
    return [
        {
            "title": f"{denoiser} denoiser: {title}",
            "count": _count(rows[outcome]),
            "cards": [_card(arms, row) for row in rows[outcome][:MOST]],
        }
        for outcome, title in _OUTCOMES.items()
    ]


def _count(rows: list[int]) -> str:
    return f"{len(rows)}, of which the first {MOST} are shown" if len(rows) > MOST else str(len(rows))


def _card(arms: Mapping[str, Sequence[Drawn]], row: int) -> dict[str, Any]:
    images = []
    for arm, drawn in arms.items():
        item = drawn[row]
        wrong = [statement for statement, holds in item.verdict.facts.items() if not holds]
        images.append({
            "noise": arm, "seed": item.seed, "right": item.verdict.strict, "data": _encoded(item.image),
            "facts": "not: " + ", ".join(wrong) if wrong else "everything holds",
        })  # fmt: skip
    return {"prompt": arms[PLAIN][row].prompt, "images": images}


def _encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()

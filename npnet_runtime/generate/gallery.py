"""A gallery as one HTML file that needs nothing else: no server, no network."""

from __future__ import annotations

import base64
import html
import io
import json
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from npnet_runtime.files import atomic_file
from npnet_runtime.generate.images import Made

JPEG_QUALITY = 92  # the PNGs lie beside it
PAGE = Path(__file__).with_name("gallery.html")
CONTROLS = """\
<p>Left of each line plain, right of it golden. All:
<button data-at="100">plain</button>
<button data-at="50">half</button>
<button data-at="0">golden</button></p>"""
SLIDER = '<input type="range" min="0" max="100" value="50" aria-label="line between plain and golden">'


def write_gallery(path: Path, made: list[Made], settings: dict[str, Any]) -> None:
    """Write the gallery: a slider between plain and golden for each seed, or the golden image alone.

    Args:
        path: of the HTML file.
        made: images in the order of a run.
        settings: shown at the end.
    """
    sections = []
    for prompt, of_prompt in groupby(made, key=lambda item: item.settings.prompt):
        figures = [_figure(list(pair)) for _, pair in groupby(of_prompt, key=lambda item: item.settings.seed)]
        sections.append(f'<h2>{html.escape(prompt)}</h2>\n<div class="seeds">\n{"".join(figures)}</div>')
    compared = any(item.settings.kind == "plain" for item in made)
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        summary=html.escape(f"{settings['model']}, {len(made)} images"),
        controls=CONTROLS if compared else "",
        prompts="\n".join(sections),
        settings=html.escape(json.dumps(settings, indent=2, ensure_ascii=False)),
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _figure(pair: list[Made]) -> str:
    images = "".join(
        f'<img class="{item.settings.kind}" src="{_inline(item.path)}" '
        f'alt="{item.settings.kind} noise, seed {item.settings.seed}">'
        for item in pair
    )
    body = f'<div class="pair">{images}</div>{SLIDER}' if len(pair) == 2 else images
    details = "<br>".join(_details(item) for item in pair)
    return (
        f"<figure>{body}<figcaption><span>seed {pair[0].settings.seed}</span><span>{details}</span>"
        "</figcaption></figure>\n"
    )


def _details(item: Made) -> str:
    score = "" if item.score is None else f", score {item.score:.4g}"
    return f"{item.settings.kind} {item.seconds:.2f} s{score}"


def _inline(path: Path) -> str:
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
